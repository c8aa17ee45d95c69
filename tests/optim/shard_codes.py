"""What each rank of the tests of shards runs of momentum in 8 bits and of random rounding; ``test_shards.py`` starts the ranks.

A sharded optimizer is compared with one on whole tensors, on each rank.
"""

from __future__ import annotations

import copy
import io

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._pytree import tree_map_only

from lightning_adam_mini import AdamMini, BlockLayout, find_flat_shards, to_adamw_state_dict

LAYOUTS = {
    "rows": BlockLayout.each_line((70, 64)),
    "long_rows": BlockLayout.each_line((9, 700)),
    "heads": BlockLayout.grouped((64, 80), "q:4x16"),
    "whole": BlockLayout.whole((48, 100)),
    "elements": BlockLayout.per_parameter((65, 64)),
    "vector": BlockLayout.whole((5000,)),
    "conv": BlockLayout.each_line((16, 32, 3, 3)),
    "experts": BlockLayout((3, 30, 64), dims=(2,)),
    "narrow": BlockLayout.each_line((2000, 3)),
    "small": BlockLayout.each_line((12, 5)),
}
UNCUT = ("rows", "long_rows", "elements", "conv", "small")
"""Whose blocks and rows of codes are whole where the first dimension is cut."""


def values(name, seed):
    generator = torch.Generator().manual_seed(1000 * seed + list(LAYOUTS).index(name))
    return torch.randn(LAYOUTS[name].shape, generator=generator)


class Times(nn.Module):
    def __init__(self, name, dtype, channels_last):
        super().__init__()
        self.name = name
        w = values(name, 0).to(dtype)
        self.w = nn.Parameter(w.contiguous(memory_format=torch.channels_last) if channels_last and w.ndim == 4 else w)

    def forward(self, t):
        return (self.w * values(self.name, t).to(self.w.dtype)).sum()


class Model(nn.Module):
    """A network whose backward gives every parameter the gradients of ``values``."""

    def __init__(self, dtype=torch.float32, channels_last=False):
        super().__init__()
        for name in LAYOUTS:
            setattr(self, name, Times(name, dtype, channels_last))

    def forward(self, t):
        return sum(getattr(self, name)(t) for name in LAYOUTS)


def named(model):
    return [(name, getattr(model, name).w) for name in LAYOUTS]


def make(named_parameters, **options):
    return AdamMini(named_parameters, lr=1e-2, betas=(0.9, 0.95), layouts=LAYOUTS, **options)


def train(model, optimizer, first, last):
    for t in range(first, last):
        for name, p in named(model):
            grad = values(name, t).to(p.dtype)
            p.grad = distribute_tensor(grad, p.device_mesh, p.placements) if hasattr(p, "placements") else grad
        optimizer.step()


def meshes(world, dtype=torch.float32):
    line = init_device_mesh("cpu", (world,))

    def rows():
        model = Model(dtype)
        for holder in model.children():
            fully_shard(holder, mesh=line)
        return model

    def columns():
        model = Model(dtype)
        for name, p in named(model):
            getattr(model, name).w = nn.Parameter(distribute_tensor(p.detach(), line, [Shard(1 if p.ndim > 1 else 0)]))
        return model

    yield "rows", rows
    yield "columns", columns


def full_state(model, optimizer):
    """The state on one device. Of uneven columns torch 2.11 gathers tensors with gaps, and broadcasts only those without rightly."""
    state = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    return tree_map_only(torch.Tensor, torch.Tensor.contiguous, state)


def whole(p):
    return (p.full_tensor() if hasattr(p, "full_tensor") else p).detach()


def check_codes(world):
    """Momentum in 8 bits: as on one device within the codes' rounding, and to the bit where neither rows nor blocks are cut."""
    alone, wide = Model(), Model()
    one, float32 = make(named(alone), momentum_dtype="8bit"), make(named(wide))
    train(alone, one, 1, 6), train(wide, float32, 1, 6)
    for kind, build in meshes(world):
        model = build()
        optimizer = make(named(model), momentum_dtype="8bit")
        train(model, optimizer, 1, 6)
        for name, p in named(model):
            codes = optimizer.state[p]["exp_avg"]
            assert codes.dtype == (torch.float32 if name == "small" else torch.int8), name
            rounding = (whole(getattr(alone, name).w) - whole(getattr(wide, name).w)).norm()
            off = (whole(p) - whole(getattr(alone, name).w)).norm()
            assert off <= 2 * rounding + 1e-5, (kind, name, float(off), float(rounding))
            if kind == "rows" and name in UNCUT:
                assert torch.equal(whole(p), whole(getattr(alone, name).w)), (kind, name)


def check_codes_in_state_dicts(world):
    """A state goes on to the bit where it came from, and within the codes' rounding anywhere else."""
    for kind, build in meshes(world):
        source = build()
        first = make(named(source), momentum_dtype="8bit")
        train(source, first, 1, 4)
        state = first.state_dict()
        assert {entry["exp_avg"].dtype for entry in state["state"].values()} == {torch.float32}
        assert all("exp_avg_scale" not in entry for entry in state["state"].values())
        again = build()
        with torch.no_grad():
            for (_, p), (_, q) in zip(named(again), named(source), strict=True):
                p.copy_(q)
        second = make(named(again), momentum_dtype="8bit")
        set_optimizer_state_dict(again, second, optim_state_dict=get_optimizer_state_dict(source, first))
        train(source, first, 4, 7), train(again, second, 4, 7)
        for name, p in named(again):
            assert torch.equal(whole(p), whole(getattr(source, name).w)), (kind, name)

        full = copy.deepcopy(full_state(source, first))
        state = first.state_dict()
        state["state"] = {i: {key: whole(kept).clone() for key, kept in entry.items()} for i, entry in state["state"].items()}
        copied = {name: whole(p) for name, p in named(source)}
        train(source, first, 7, 9)
        for other_kind, other in [("one device", Model), *meshes(world)]:
            target = other()
            with torch.no_grad():
                for name, p in named(target):
                    p.copy_(distribute_tensor(copied[name], p.device_mesh, p.placements) if hasattr(p, "placements") else copied[name])
            third = make(named(target), momentum_dtype="8bit")
            if other_kind == "one device":
                third.load_state_dict(state)
            else:
                options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
                set_optimizer_state_dict(target, third, optim_state_dict=full, options=options)
            train(target, third, 7, 9)
            for name, p in named(source):
                moved = (whole(p) - copied[name]).norm()
                off = (whole(p) - whole(getattr(target, name).w)).norm()
                assert off <= 0.03 * moved, (kind, other_kind, name, float(off), float(moved))
    # From one device, whose codes are saved as they are.
    alone = Model()
    one = make(named(alone), momentum_dtype="8bit")
    train(alone, one, 1, 4)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for kind, build in meshes(world):
        for saved in (state, to_adamw_state_dict(state)):
            model = build()
            with torch.no_grad():
                for name, p in named(model):
                    p.copy_(distribute_tensor(whole(getattr(alone, name).w), p.device_mesh, p.placements))
            optimizer = make(named(model), momentum_dtype="8bit")
            optimizer.load_state_dict(saved)
            twin = Model()
            twin.load_state_dict(alone.state_dict())
            other = make(named(twin), momentum_dtype="8bit")
            other.load_state_dict(state)
            train(model, optimizer, 4, 6), train(twin, other, 4, 6)
            for name, p in named(model):
                moved = (whole(getattr(twin, name).w) - whole(getattr(alone, name).w)).norm()
                off = (whole(p) - whole(getattr(twin, name).w)).norm()
                assert off <= 0.03 * moved, (kind, name, float(off), float(moved))


def check_random_rounding(world):
    """Random bits follow the element's place in the whole tensor: however it is cut, the same weights are rounded the same way."""
    for momentum_dtype in (torch.float32, "8bit"):
        options = {"momentum_dtype": momentum_dtype, "stochastic_rounding": True}
        alone = Model(torch.bfloat16)
        one = make(named(alone), **options)
        train(alone, one, 1, 2)
        for kind, build in meshes(world, torch.bfloat16):
            model = build()
            optimizer = make(named(model), **options)
            train(model, optimizer, 1, 2)
            for name, p in named(model):
                same = whole(p) == whole(getattr(alone, name).w)
                # Sums over ranks are taken in another order, which can tip a rounding.
                assert float(same.float().mean()) > 0.999, (kind, name, momentum_dtype, float(same.float().mean()))
                if kind == "rows" and name in UNCUT:
                    assert bool(same.all()), (name, momentum_dtype)


def check_fsdp1_codes(world):
    """Flat ranges, which begin and end anywhere."""
    for dtype, options in (
        (torch.float32, {"momentum_dtype": "8bit"}),
        (torch.bfloat16, {"momentum_dtype": "8bit", "stochastic_rounding": True}),
        (torch.bfloat16, {"momentum_dtype": torch.float32, "stochastic_rounding": True}),
    ):
        last = 6 if dtype == torch.float32 else 2
        alone, wide = Model(dtype, channels_last=True), Model(dtype, channels_last=True)
        one, float32 = make(named(alone), **options), make(named(wide), momentum_dtype=torch.float32)
        train(alone, one, 1, last), train(wide, float32, 1, last)
        model = FullyShardedDataParallel(Model(dtype, channels_last=True), device_id=torch.device("cpu"), use_orig_params=True)
        names = {p: name for name in LAYOUTS for key, p in model.named_parameters() if f".{name}." in f".{key}"}
        optimizer = make([(names[p], p) for p in model.parameters()], flat_shards=find_flat_shards(model), **options)
        for t in range(1, last):
            optimizer.zero_grad()
            model(t).backward()
            optimizer.step()
        # Not by way of FSDP's optim_state_dict: on the CPU that of torch 2.14 mixes up the two moments, AdamW's too.
        state = optimizer.state_dict()
        assert all("exp_avg_scale" not in entry and entry["exp_avg"].is_floating_point() for entry in state["state"].values())
        optimizer.load_state_dict(state)
        optimizer.zero_grad()
        model(last).backward()
        optimizer.step()
        train(alone, one, last, last + 1), train(wide, float32, last, last + 1)
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            for key, p in model.named_parameters():
                name = next(name for name in LAYOUTS if f".{name}." in f".{key}")
                ours = getattr(alone, name).w.detach()
                if dtype == torch.bfloat16:
                    assert float((p == ours).float().mean()) > 0.97, (name, options, float((p == ours).float().mean()))
                else:
                    rounding = (ours - getattr(wide, name).w.detach()).norm()
                    assert (p - ours).norm() <= 2 * rounding + 1e-4, (name, float((p - ours).norm()), float(rounding))


CHECKS = (check_codes, check_codes_in_state_dicts, check_random_rounding, check_fsdp1_codes)
