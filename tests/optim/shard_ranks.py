"""What each rank of the tests of shards runs; ``test_shards.py`` starts the ranks."""

from __future__ import annotations

import io
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_adam_mini import AdamMini, BlockLayout, find_flat_shards
from tests import launch
from tests.optim import shard_blocks, shard_codes

LR, BETAS, EPS, STEPS = 1e-2, (0.9, 0.99), 1e-8, 8
# Each parameter with its blocks twice: as a layout, and as the number of each element's block, written out.
SHAPES = {
    "rows": (37, 12), "heads": (12, 5), "fused": (30, 4), "columns": (9, 7), "whole": (5, 9), "bias": (11,), "elements": (7, 3),
    "one": (1,), "conv": (6, 3, 2, 2), "transposed": (4, 12), "alternating": (12, 3),
    "crossed": (11, 8), "kernels": (6, 4, 3, 2), "experts": (4, 6, 5), "by_head": (12, 7),
}  # fmt: skip
LAYOUTS = {
    "rows": BlockLayout((37, 12), dims=(1,)),
    "heads": BlockLayout.grouped((12, 5), "q:4x3"),
    "fused": BlockLayout.grouped((30, 4), "q:2x5|k:2x5|v:10x1"),
    "columns": BlockLayout((9, 7), dims=(0,)),
    "whole": BlockLayout.whole((5, 9)),
    "bias": BlockLayout.whole((11,)),
    "elements": BlockLayout.per_parameter((7, 3)),
    "one": BlockLayout.whole((1,)),
    "conv": BlockLayout((6, 3, 2, 2), dims=(0, 2)),
    "transposed": BlockLayout.grouped((4, 12), "k:4x3", axis=1),
    "alternating": BlockLayout.grouped((12, 3), "q:2x6t"),
    "crossed": BlockLayout.factored((11, 8)),
    "kernels": BlockLayout.factored((6, 4, 3, 2)),
    "experts": BlockLayout((4, 6, 5), dims=(2,), crossed=(1,)),
    "by_head": BlockLayout((12, 7), dims=(1,), axis=0, lines="q:4x3", crossed=(0,)),
}
_FUSED = [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5 + list(range(4, 14))
BLOCKS = {
    "rows": lambda i: i[0], "heads": lambda i: i[0] // 3, "fused": lambda i: _FUSED[i[0]], "columns": lambda i: i[1], "whole": lambda i: 0,
    "bias": lambda i: 0, "elements": lambda i: i[0] * 3 + i[1], "one": lambda i: 0, "conv": lambda i: i[1] * 2 + i[3],
    "transposed": lambda i: i[1] // 3, "alternating": lambda i: i[0] % 2,
    "crossed": lambda i: i[0], "kernels": lambda i: i[0], "experts": lambda i: i[0] * 6 + i[1], "by_head": lambda i: i[0] // 3,
}  # fmt: skip
# Of factored ones also the blocks of the second mean, and what both average to.
CROSSED = {
    "crossed": (lambda i: i[1], lambda i: 0), "kernels": (lambda i: i[1], lambda i: 0),
    "experts": (lambda i: i[0] * 5 + i[2], lambda i: i[0]), "by_head": (lambda i: i[1], lambda i: 0),
}  # fmt: skip


def numbers(name, seed):
    return np.random.default_rng([seed, list(SHAPES).index(name)]).standard_normal(SHAPES[name])


def expected(steps=STEPS, weight_decay=0.0, decoupled=True, maximize=False):
    """Parameters and second moments (one value per element), in float64."""
    weights, moments = {}, {}
    for name, shape in SHAPES.items():
        ids = [np.array([block(i) for i in np.ndindex(*shape)]) for block in (BLOCKS[name], *CROSSED.get(name, ()))]
        p, m, kept = numbers(name, 0).reshape(-1), np.zeros(ids[0].shape), [np.zeros(of.max() + 1) for of in ids[:2]]
        for t in range(1, steps + 1):
            g = numbers(name, t).reshape(-1) * (-1 if maximize else 1)
            p, g = (p * (1 - LR * weight_decay), g) if decoupled else (p, g + weight_decay * p)
            kept = [BETAS[1] * v + (1 - BETAS[1]) * np.bincount(of, g * g) / np.bincount(of) for v, of in zip(kept, ids, strict=False)]
            v = kept[0][ids[0]]
            if name in CROSSED:
                second = kept[1][ids[1]]
                v = v * second / (np.bincount(ids[2], second) / np.bincount(ids[2]))[ids[2]]
            m = BETAS[0] * m + (1 - BETAS[0]) * g
            bound = max(1.0, (1 - BETAS[0]) / np.sqrt(1 - BETAS[1])) if name in CROSSED else np.inf
            p = p - LR * np.clip(m / (1 - BETAS[0] ** t) / (np.sqrt(v / (1 - BETAS[1] ** t)) + EPS), -bound, bound)
        weights[name], moments[name] = p.reshape(shape), v.reshape(shape)
    return weights, moments


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        for name in SHAPES:
            holder = nn.Module()
            holder.w = nn.Parameter(torch.tensor(numbers(name, 0), dtype=torch.float32))
            setattr(self, name, holder)


def named(model):
    return [(name, getattr(model, name).w) for name in SHAPES]


def shard_with(mesh, *placements):
    """A model whose tensors are cut as ``placements`` say; dimensions that a tensor does not have are replicated."""
    model = Model()
    for name, p in named(model):
        fitting = [q if not isinstance(q, Shard) or q.dim < p.ndim else Replicate() for q in placements]
        getattr(model, name).w = nn.Parameter(distribute_tensor(p.detach(), mesh, fitting))
    return model


def sharded_by_fsdp2(mesh):
    model = Model()
    for holder in model.children():
        fully_shard(holder, mesh=mesh)
    return model


def train(model, optimizer, steps=STEPS, first=1):
    for t in range(first, first + steps):
        for name, p in named(model):
            grad = torch.tensor(numbers(name, t), dtype=torch.float32)
            p.grad = distribute_tensor(grad, p.device_mesh, p.placements)
        optimizer.step()


def close(actual, desired, rtol=2e-5):
    for name in SHAPES:
        value = actual[name].full_tensor() if hasattr(actual[name], "full_tensor") else actual[name]
        np.testing.assert_allclose(value.detach().clone().expand(SHAPES[name]).numpy(), desired[name], rtol=rtol, atol=1e-6, err_msg=name)


def make(model, **options):
    return AdamMini(named(model), betas=BETAS, eps=EPS, layouts=LAYOUTS, **{"lr": LR, "weight_decay": 0.0, **options})


def meshes(world):
    """Lines of two ranks, and squares of four."""
    if world == 2:
        line = init_device_mesh("cpu", (world,))
        yield "FSDP2", lambda: sharded_by_fsdp2(line)
        yield "columns", lambda: shard_with(line, Shard(1))
        yield "replicated", lambda: shard_with(line, Replicate())
    else:
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        yield "rows and columns", lambda: shard_with(square, Shard(0), Shard(1))
        yield "rows twice", lambda: shard_with(square, Shard(0), Shard(0))
        yield "HSDP", lambda: sharded_by_fsdp2(square)
        yield "FSDP2 over tensor parallel rows", lambda: _fsdp2_over(square, Shard(0))
        yield "FSDP2 over tensor parallel columns", lambda: _fsdp2_over(square, Shard(1))


_TAKES_GAPS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)
"""Whether FSDP2 takes what is left of a row that is cut unevenly; torch 2.6 does not."""


def _fsdp2_over(mesh, placement):
    model = shard_with(mesh["b"], placement)
    for name in SHAPES:  # torch takes no uneven cut of a cut
        columns = SHAPES[name][1] if placement.dim == 1 and len(SHAPES[name]) > 1 else None
        if SHAPES[name][0] % 4 == 0 if columns is None else _TAKES_GAPS or columns % 2 == 0:
            fully_shard(getattr(model, name), mesh=mesh["a"])
    return model


def check_numbers(world):
    coupled = {"weight_decay": 0.1, "decoupled_weight_decay": False, "maximize": True}
    for options in ({}, coupled) if world == 2 else (coupled,):
        plain = {"weight_decay": 0.0, "decoupled_weight_decay": True, **options}
        plain["decoupled"] = plain.pop("decoupled_weight_decay")
        weights, moments = expected(**plain)
        for name, build in meshes(world):
            for foreach in (None,) if options else (None, True):
                model = build()
                optimizer = make(model, foreach=foreach, **options)
                train(model, optimizer)
                try:
                    close(dict(named(model)), weights)
                    close(optimizer.second_moments(), moments)
                except AssertionError as error:
                    raise AssertionError(f"{name}, {options}, {foreach=}: {error}") from error


class Collectives(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.sent = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func._opname:
            self.sent.append(sum(t.numel() * t.element_size() for t in args[0]))
        return func(*args, **(kwargs or {}))


def check_communication(world):
    line = init_device_mesh("cpu", (world,))
    model = sharded_by_fsdp2(line)
    optimizer = make(model)
    train(model, optimizer, steps=1)
    cut = 0  # blocks that several ranks hold, counted by hand: torch gives each rank ceil(rows / world) rows
    for name, shape in SHAPES.items():
        per_rank = -(-shape[0] // world)
        for block in (BLOCKS[name], *CROSSED.get(name, ())[:1]):
            holders = {}
            for i in np.ndindex(*shape):
                holders.setdefault(block(i), set()).add(i[0] // per_rank)
            cut += sum(len(ranks) > 1 for ranks in holders.values())
    for name, p in named(model):
        p.grad = distribute_tensor(torch.ones(SHAPES[name]), p.device_mesh, p.placements)
    with Collectives() as counted:
        optimizer.step()
    assert counted.sent == [4 * cut], (counted.sent, cut)
    rows = AdamMini([("rows", model.rows.w), ("elements", model.elements.w)], layouts={k: LAYOUTS[k] for k in ("rows", "elements")})
    rows.step()
    with Collectives() as counted:
        rows.step()
    assert counted.sent == []
    kept = ("exp_avg_sq", "exp_avg_sq_col")
    held = sum(state["exp_avg"].to_local().numel() for state in optimizer.state.values())
    held += sum(state[name].numel() for state in optimizer.state.values() for name in kept if name in state)
    most = sum(-(-shape[0] // world) * int(np.prod(shape[1:])) for shape in SHAPES.values())
    assert held <= most + sum(layout.num_blocks for name, layout in LAYOUTS.items() if name not in ("rows", "elements")) + most // 5


def check_state(world):
    """States go from any sharding to any other, to one device, and to and from AdamW."""
    weights, moments = expected()
    each = list(meshes(world))
    for i, (name, build) in enumerate(each):
        source = build()
        first = make(source)
        train(source, first, steps=5)
        whole = shard_codes.full_state(source, first)
        copied = {n: p.full_tensor().detach() for n, p in named(source)}
        for kind, other in (each[i - 1], (name, build)):  # the last takes over the tensors
            target = other()
            with torch.no_grad():
                for n, p in named(target):
                    p.copy_(distribute_tensor(copied[n], p.device_mesh, p.placements))
            second = make(target)
            if kind == name:
                set_optimizer_state_dict(target, second, optim_state_dict=get_optimizer_state_dict(source, first))
            else:
                set_optimizer_state_dict(
                    target, second, optim_state_dict=whole, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
                )
            train(target, second, steps=STEPS - 5, first=6)
            try:
                close(dict(named(target)), weights)
                close(second.second_moments(), moments)
            except AssertionError as error:
                raise AssertionError(f"{name} to {kind}: {error}") from error
        alone = Model()
        third = make(alone)
        state = first.state_dict()
        full = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t  # noqa: E731
        state["state"] = {i: {k: full(v) for k, v in entry.items()} for i, entry in state["state"].items()}
        third.load_state_dict(state)
        back = make(build())
        back.load_state_dict(third.state_dict())
        close(back.second_moments(), {k: v.expand(SHAPES[k]).numpy() for k, v in first.second_moments().items()}, rtol=1e-7)
        adamw = torch.optim.AdamW([p for _, p in named(alone)])
        for n, p in named(alone):
            p.grad = torch.tensor(numbers(n, 1), dtype=torch.float32)
        adamw.step()
        back.load_state_dict(adamw.state_dict())
        means = make(Model())
        means.load_state_dict(adamw.state_dict())
        close(back.second_moments(), {k: v.expand(SHAPES[k]).numpy() for k, v in means.second_moments().items()}, rtol=1e-6)


def check_errors(world):
    """An error that one rank finds is raised by all of them, and names the parameter."""
    model = sharded_by_fsdp2(init_device_mesh("cpu", (world,)))
    optimizer = make(model)
    train(model, optimizer, steps=1)
    broken = optimizer.state_dict()
    if dist.get_rank() == 1:
        broken["state"][1] = {**broken["state"][1], "exp_avg_sq": torch.zeros(3)}
    with pytest.raises(ValueError, match="'heads'"):
        optimizer.load_state_dict(broken)
    with pytest.raises(ValueError, match="'columns' has blocks .* neither finer nor coarser"):
        optimizer.set_layouts({"columns": BlockLayout.each_line((9, 7))})
    other = AdamMini(named(model), layouts={**LAYOUTS, "columns": BlockLayout.each_line((9, 7))})
    train(model, other, steps=1)
    with pytest.raises(ValueError, match="'columns' has blocks .* neither finer nor coarser"):
        optimizer.load_state_dict(other.state_dict())


def check_loose_ends(world):
    """Gradients that are None, bfloat16 momentum, learning rates that are tensors."""
    model = sharded_by_fsdp2(init_device_mesh("cpu", (world,)))
    optimizer = make(model)
    train(model, optimizer, steps=2)
    file = io.BytesIO()
    torch.save({"groups": optimizer.state_dict()["param_groups"]}, file)
    file.seek(0)
    torch.load(file, weights_only=True)
    before = {n: p.full_tensor().clone() for n, p in named(model)}
    moments = {n: v.clone() for n, v in optimizer.second_moments().items()}
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()  # nothing to do, on any rank
    model.heads.w.grad = distribute_tensor(torch.ones(12, 5), model.heads.w.device_mesh, model.heads.w.placements)
    optimizer.step()
    for n, p in named(model):
        assert torch.equal(p.full_tensor(), before[n]) == (n != "heads"), n
        assert torch.equal(optimizer.second_moments()[n], moments[n]) == (n != "heads"), n
    one = sharded_by_fsdp2(init_device_mesh("cpu", (world,)))
    narrow = make(one, momentum_dtype=torch.bfloat16, lr=torch.tensor(LR))
    train(one, narrow, steps=3)
    assert {state["exp_avg"].dtype for state in narrow.state.values()} == {torch.bfloat16}
    weights, moments = expected(steps=3)
    close(dict(named(one)), weights, rtol=1e-2)
    compiled = sharded_by_fsdp2(init_device_mesh("cpu", (world,)))
    traced = make(compiled)
    traced.step = torch.compile(traced.step, backend="eager")
    train(compiled, traced, steps=3)
    close(dict(named(compiled)), weights)
    close(narrow.second_moments(), moments)


class Flat(nn.Module):
    """A network whose backward gives every parameter the gradients of ``numbers``: the loss is their product with it."""

    def __init__(self):
        super().__init__()
        for name in SHAPES:
            setattr(self, name, Times(name))

    def forward(self, t):
        return sum(getattr(self, name)(t) for name in SHAPES)


class Times(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name
        w = torch.tensor(numbers(name, 0), dtype=torch.float32)
        self.w = nn.Parameter(w.contiguous(memory_format=torch.channels_last) if w.ndim == 4 else w)

    def forward(self, t):
        return (self.w * torch.tensor(numbers(self.name, t), dtype=torch.float32)).sum()


def check_fsdp1(world):
    for one_unit in (True, False):
        for options in ({}, {"weight_decay": 0.1, "decoupled_weight_decay": False}):
            weights, moments = expected(weight_decay=options.get("weight_decay", 0.0), decoupled=not options)
            model = Flat()
            if not one_unit:
                for name in SHAPES:
                    setattr(model, name, _fsdp1(getattr(model, name)))
            model = _fsdp1(model)
            shards = find_flat_shards(model)
            assert sum(s.end - s.begin for s in shards.values()) == sum(p.numel() for p in shards)
            names = {p: name for name in SHAPES for key, p in model.named_parameters() if f"{name}." in key}
            optimizer = AdamMini(
                [(names[p], p) for p in model.parameters()],
                lr=LR, betas=BETAS, eps=EPS, layouts=LAYOUTS, flat_shards=shards, **{"weight_decay": 0.0, **options},
            )  # fmt: skip
            for t in range(1, STEPS + 1):
                optimizer.zero_grad()
                model(t).backward()
                optimizer.step()
            close(optimizer.second_moments(), moments)
            assert optimizer.block_learning_rates().keys() == set(SHAPES)
            with FullyShardedDataParallel.summon_full_params(model, writeback=False):
                close({names_of(key): p for key, p in model.named_parameters()}, weights)
    with pytest.raises(ValueError, match=r"flat_shards=find_flat_shards\(model\)"):
        AdamMini([(names[p], p) for p in model.parameters()], layouts=LAYOUTS)
    flat = FullyShardedDataParallel(Flat(), device_id=torch.device("cpu"), use_orig_params=False)
    with pytest.raises(ValueError, match="use_orig_params=True"):
        AdamMini(flat.named_parameters(), layouts={n: LAYOUTS["rows"] for n, _ in flat.named_parameters()})


def names_of(key):
    return next(name for name in SHAPES if f"{name}." in key)


def _fsdp1(module):
    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)


LINE = (check_numbers, check_communication, check_state, check_errors, check_loose_ends, check_fsdp1)
CHECKS = {2: (*LINE, *shard_codes.CHECKS, *shard_blocks.CHECKS), 4: (check_numbers, check_state)}
"""By the number of ranks: four for what needs a square of them."""


def run_checks(world):
    """Run all checks in one group of ranks; what went wrong, by name."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    return launch.run_checks(CHECKS[world], world)
