"""What each rank of the tests of shared matrices runs; ``test_matrix_shards.py`` starts the ranks.

Parameters on several ranks are compared with the same on one device, which each rank steps beside them.
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from datetime import timedelta

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from experiments.strategies.run import whole_weights
from lightning_adam_mini import AdamMini, BlockLayout, MatrixLayout, find_flat_shards
from tests import launch
from tests.callbacks.strategy_ranks import fit

STEPS = 10
# Rows that 2 and 4 ranks do not divide, one that leaves ranks with nothing, experts, a convolution, fused projections that are cut.
SHAPES = {
    "five": (5, 8), "seven": (7, 8), "nine": (9, 4), "twelve": (12, 8), "more": (12, 8), "few": (3, 5), "experts": (3, 6, 4),
    "conv": (8, 3, 2, 2), "fused": (12, 8), "heads": (12, 4), "bias": (7,),
}  # fmt: skip
CUTS = {"fused": "q:6|k:3|v:3", "heads": "q:2x6t"}
CHUNKED = ("five", "seven", "nine", "twelve", "more", "few", "conv", "fused", "heads")  # whose matrices a cut of the first dimension cuts


def layouts(beta2=None, **rule):
    made = {"bias": BlockLayout.whole((7,))}
    for name, shape in SHAPES.items():
        if name != "bias":
            where = {"rows": 1, "stacked": (0,)} if name == "experts" else {}
            made[name] = MatrixLayout(shape, cut=CUTS.get(name), beta2=beta2, **{"precision": "float32", **where, **rule})
    return made


KINDS = {"muon": layouts(), "normuon": layouts(beta2=0.9)}


def values(name, seed):
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(1000 * seed + list(SHAPES).index(name)))


class Model(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        for name in SHAPES:
            holder = nn.Module()
            holder.w = nn.Parameter(values(name, 0).to(dtype))
            setattr(self, name, holder)


def named(model):
    return [(name, getattr(model, name).w) for name in SHAPES]


def make(model, kind, **options):
    return AdamMini(named(model), layouts=KINDS[kind] if isinstance(kind, str) else kind, **{"lr": 1e-2, "weight_decay": 0.1, **options})


def train(model, optimizer, last, first=1, frozen=()):
    for t in range(first, last + 1):
        for name, p in named(model):
            grad = values(name, t).to(p.dtype)
            grad = distribute_tensor(grad, p.device_mesh, p.placements) if hasattr(p, "placements") else grad
            p.grad = None if name in frozen and t % 2 else grad
        optimizer.step()


def sharded(mesh, along=0, dtype=torch.float32):
    model = Model(dtype)
    for holder in model.children():
        fully_shard(
            holder, mesh=mesh, shard_placement_fn=lambda p: Shard(along if p.ndim > along and p.shape[along] % mesh.size() == 0 else 0)
        )
    return model


def columns(mesh, dtype=torch.float32):
    """Cut along columns that ranks do not divide, which fully_shard does not do."""
    model = Model(dtype)
    for name, p in named(model):
        getattr(model, name).w = nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(p.ndim - 1)]))
    return model


def meshes(world, dtype=torch.float32):
    line = init_device_mesh("cpu", (world,))
    yield "FSDP2", lambda: sharded(line, dtype=dtype)
    if world == 2:
        yield "FSDP2 along columns", lambda: sharded(line, 1, dtype)
        yield "uneven columns", lambda: columns(line, dtype)
    else:
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        yield "HSDP", lambda: sharded(square, dtype=dtype)


def whole(p):
    return (p.full_tensor() if hasattr(p, "full_tensor") else p).detach()


def close(model, other, within=1e-5):
    for (name, p), (_, q) in zip(named(model), named(other), strict=True):
        torch.testing.assert_close(whole(p), whole(q), rtol=0, atol=within, msg=lambda text, name=name: f"{name}: {text}")


def alone(kind, steps=STEPS, dtype=torch.float32, **options):
    model = Model(dtype)
    optimizer = make(model, kind, **options)
    train(model, optimizer, steps)
    return model, optimizer


def check_fsdp2(world):
    for kind in KINDS:
        for options in ({}, {"maximize": True, "decoupled_weight_decay": False, "lr": torch.tensor(1e-2)})[: 4 // world]:
            one, single = alone(kind, **options)
            for name, build in meshes(world):
                model = build()
                optimizer = make(model, kind, **options)
                train(model, optimizer, STEPS)
                try:
                    close(model, one)
                    expected, updates = single.matrix_updates(), optimizer.matrix_updates()
                    assert updates.keys() >= set(CHUNKED)
                    for matrix in CHUNKED:
                        for ours, theirs in zip(updates[matrix], expected[matrix], strict=True):
                            assert (ours is None) == (theirs is None)
                            if ours is not None:
                                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-9)
                except AssertionError as error:
                    raise AssertionError(f"{kind}, {name}, {options}: {error}") from error


class Sent(TorchDispatchMode):
    """Counts the bytes that this rank gives to collectives, and the elements that it orthogonalises."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.orthogonalised = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func._opname:
            given = args[0] if "allreduce" in func._opname else [args[1]]  # else what it receives comes first
            self.calls.append((func._opname.strip("_"), sum(t.numel() * t.element_size() for t in given)))
        if func.overloadpacket is torch.ops.aten.baddbmm and args[0].shape == args[2].shape and args[0] is not args[1]:
            self.orthogonalised += args[0].numel()
        return func(*args, **(kwargs or {}))


def check_communication(world):
    """FSDP2 sends its share of a momentum, and back the updates of what it owns; DDP gathers the updates, padded to the largest share."""
    rank, matrices = dist.get_rank(), {name: math.prod(SHAPES[name]) for name in SHAPES if name != "bias"}
    for kind in KINDS:
        model = sharded(init_device_mesh("cpu", (world,)))
        optimizer = make(model, kind)
        train(model, optimizer, 2)
        with Sent() as sent:
            optimizer.step()
        held = sum(getattr(model, name).w.to_local().numel() for name in CHUNKED)
        # Sorted by shape, the parameters go round the ranks; whole experts stay where they are.
        owned = sum(math.prod(SHAPES[name]) for name in sorted(CHUNKED, key=SHAPES.__getitem__)[rank::world])
        experts = model.experts.w.to_local().numel()
        rows = sum(SHAPES[name][0] for name in CHUNKED) if kind == "normuon" else 0
        expected = [("alltoall_base", 4 * held), ("alltoall_base", 4 * owned)] + [("allreduce", 4 * rows)] * bool(rows)
        assert [call for call in sent.calls if call != ("allreduce", 4)] == expected, (sent.calls, expected)
        assert sent.orthogonalised == 5 * (owned + experts)

        model = Model()
        optimizer = make(model, kind)
        optimizer.share_work(dist.group.WORLD)
        train(model, optimizer, 2)
        with Sent() as sent:
            optimizer.step()
        ((name, padded),) = sent.calls
        shares = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
        dist.all_gather(shares, torch.tensor([sent.orthogonalised // 5]))
        assert sum(map(int, shares)) == sum(matrices.values())  # each matrix once
        assert (name, padded) == ("allgather_base", 4 * max(map(int, shares)))
        assert max(map(int, shares)) <= sum(matrices.values()) / world + 2 * max(matrices.values())


def check_ddp(world):
    """Each rank does its share: as one process, and to the bit the same on all ranks, in groups of their own options too."""
    for kind in KINDS:
        for options in ({}, {"momentum_dtype": "8bit"}, {"momentum_dtype": torch.bfloat16}):
            one, single = alone(kind, **options)
            model = Model()
            optimizer = make(model, kind, **options)
            optimizer.share_work(dist.group.WORLD)
            train(model, optimizer, STEPS)
            close(model, one, 1e-5 if not options else 1e-4)
            assert optimizer.matrix_updates().keys() == single.matrix_updates().keys()
            for ours, theirs in zip(optimizer.matrix_updates().values(), single.matrix_updates().values(), strict=True):
                torch.testing.assert_close(ours.rms, theirs.rms, rtol=1e-3, atol=1e-9)
            equal_on_all_ranks(p for _, p in named(model))
            equal_on_all_ranks(kept for entry in optimizer.state.values() for kept in entry.values())
            copied = copy.deepcopy(optimizer)  # which shares nothing: a process group is of one run
            with Sent() as sent:
                copied.step()
            assert sent.calls == []
    groups = {"fused": 1e-2, "twelve": 3e-2, "few": 1e-3}
    models = [Model(), Model()]
    some = [
        AdamMini([{"params": [(name, getattr(model, name).w)], "lr": lr} for name, lr in groups.items()], layouts=KINDS["normuon"])
        for model in models
    ]
    some[1].share_work(dist.group.WORLD)
    for model, optimizer in zip(models, some, strict=True):
        train(model, optimizer, 3)
    close(*models)
    with Sent() as sent:
        some[1].step()
    assert len(sent.calls) == 1
    some[1].share_work(None)
    with Sent() as sent:
        some[1].step()
    assert sent.calls == []


def equal_on_all_ranks(tensors):
    for tensor in tensors:
        flat = tensor.detach().reshape(-1).float()
        there = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
        dist.all_gather(there, flat)
        assert all(torch.equal(flat, one) for one in there)


def check_without_gradients(world):
    """A parameter that no rank has a gradient for is left out, and comes back."""
    for kind in KINDS:
        one = Model()
        train(one, make(one, kind), 6, frozen=("seven", "experts", "fused"))
        model = sharded(init_device_mesh("cpu", (world,)))
        train(model, make(model, kind), 6, frozen=("seven", "experts", "fused"))
        close(model, one)
        model = Model()
        optimizer = make(model, kind)
        optimizer.share_work(dist.group.WORLD)
        train(model, optimizer, 6, frozen=("seven", "experts", "fused"))
        close(model, one)


LARGE = {"seven": (70, 64), "fused": (96, 80), "experts": (3, 64, 48), "conv": (24, 32, 3, 3)}


def large(mesh=None, dtype=torch.float32):
    """Large enough for momentum in 8 bits."""
    model = nn.ParameterDict()
    for i, (name, shape) in enumerate(LARGE.items()):
        model[name] = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(dtype))
    if mesh is not None:
        fully_shard(model, mesh=mesh)
    return model


def train_large(model, optimizer, last, first=1):
    for t in range(first, last + 1):
        for i, p in enumerate(model.values()):
            grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * t + i)).to(p.dtype)
            p.grad = distribute_tensor(grad, p.device_mesh, p.placements) if hasattr(p, "placements") else grad
        optimizer.step()


def make_large(model, beta2, **options):
    rules = {name: MatrixLayout(shape, beta2=beta2, precision="float32") for name, shape in LARGE.items()}
    rules["experts"] = MatrixLayout(LARGE["experts"], rows=1, stacked=(0,), beta2=beta2, precision="float32")
    rules["fused"] = MatrixLayout(LARGE["fused"], cut="q:48|k:24|v:24", beta2=beta2, precision="float32")
    return AdamMini(model.items(), lr=1e-2, weight_decay=0.1, layouts=rules, **options)


def check_small_dtypes(world):
    """Momentum in 8 bits and bfloat16, whose codes are those of one device; bfloat16 weights rounded by the element's place."""
    mesh = init_device_mesh("cpu", (world,))
    for beta2 in (None, 0.9):
        for momentum_dtype in ("8bit", torch.bfloat16):
            one, model = large(), large(mesh)
            train_large(one, make_large(one, beta2, momentum_dtype=momentum_dtype), 5)
            optimizer = make_large(model, beta2, momentum_dtype=momentum_dtype)
            train_large(model, optimizer, 5)
            kinds = {kept.dtype for entry in optimizer.state.values() for key, kept in entry.items() if key == "exp_avg"}
            assert kinds == {torch.int8 if momentum_dtype == "8bit" else momentum_dtype}
            for name, p in model.items():
                torch.testing.assert_close(whole(p), one[name].detach(), rtol=0, atol=1e-5)
            one, model = large(dtype=torch.bfloat16), large(mesh, torch.bfloat16)
            options = {"momentum_dtype": momentum_dtype, "stochastic_rounding": True}
            train_large(one, make_large(one, beta2, **options), 1)
            train_large(model, make_large(model, beta2, **options), 1)
            for name, p in model.items():
                assert float((whole(p) == one[name]).float().mean()) > 0.999, name


def check_clipping(world):
    """By the norm of all gradients, which torch takes over ranks."""
    one, model = Model(), sharded(init_device_mesh("cpu", (world,)))
    for each in (one, model):
        optimizer = make(each, "normuon")
        for t in range(1, 4):
            for name, p in named(each):
                grad = values(name, t)
                p.grad = distribute_tensor(grad, p.device_mesh, p.placements) if hasattr(p, "placements") else grad
            torch.nn.utils.clip_grad_norm_(each.parameters(), 0.5)
            optimizer.step()
    close(model, one)


def check_state(world):
    """States go from ranks to one device and back, whole and sharded, and go on to the bit where they came from."""
    for kind in KINDS:
        one, single = alone(kind, steps=4)
        straight, _ = alone(kind, steps=8)
        for _, build in meshes(world):
            source = build()
            first = make(source, kind)
            train(source, first, 4)
            copied = {n: whole(p) for n, p in named(source)}
            full = get_optimizer_state_dict(source, first, options=StateDictOptions(full_state_dict=True))
            full = tree_map_only(torch.Tensor, lambda t: t.contiguous().clone(), full)
            here = first.state_dict()
            here["state"] = {i: {k: whole(v).clone() for k, v in entry.items()} for i, entry in here["state"].items()}
            for i, entry in single.state_dict()["state"].items():  # the same on any number of ranks
                assert entry.keys() == here["state"][i].keys()
                for key, kept in entry.items():
                    torch.testing.assert_close(here["state"][i][key], kept, rtol=0, atol=1e-5)
            again, alike, back, alone_again = build(), build(), build(), Model()
            for model in (again, alike, back, alone_again):
                with torch.no_grad():
                    for n, p in named(model):
                        p.copy_(distribute_tensor(copied[n], p.device_mesh, p.placements) if hasattr(p, "placements") else copied[n])
            second, third, fourth, fifth = (make(model, kind) for model in (again, alike, back, alone_again))
            set_optimizer_state_dict(again, second, optim_state_dict=get_optimizer_state_dict(source, first))
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            set_optimizer_state_dict(alike, third, optim_state_dict=full, options=options)
            fifth.load_state_dict(here)
            fourth.load_state_dict(copy.deepcopy(fifth.state_dict()))
            train(source, first, 8, first=5)
            for model, optimizer in ((again, second), (alike, third), (back, fourth), (alone_again, fifth)):
                train(model, optimizer, 8, first=5)
                close(model, straight)
                if model is not alone_again:
                    close(model, source, within=0.0)
            adamw = torch.optim.AdamW([p for _, p in named(one)])
            adamw.load_state_dict(state_of_adamw(one))
            make(build(), kind).load_state_dict(adamw.state_dict())


def state_of_adamw(model):
    adamw = torch.optim.AdamW([p for _, p in named(model)])
    for name, p in named(model):
        p.grad = values(name, 1)
    adamw.step()
    return adamw.state_dict()


def check_refusals(world):
    """What is sharded in another way is refused by name, on every rank."""
    layout = {"w": MatrixLayout((8, 12))}
    refused = []
    if world == 4:
        square = init_device_mesh("cpu", (2, 2))
        refused = [
            distribute_tensor(torch.ones(8, 12), square, [Shard(0), Shard(1)]),
            distribute_tensor(torch.ones(8, 12), square, [Shard(0)] * 2),
        ]
        kept = distribute_tensor(torch.ones(8, 12), square, [Replicate(), Shard(1)])
        AdamMini([("w", nn.Parameter(kept))], layouts=layout)
    for tensor in refused:
        with pytest.raises(ValueError, match="'w' of shape .* cut by .*'w': 'factored'"):
            AdamMini([("w", nn.Parameter(tensor))], layouts=layout)
    model = FullyShardedDataParallel(nn.Linear(12, 8, bias=False), device_id=torch.device("cpu"), use_orig_params=True)
    for shards in (find_flat_shards(model), None):
        with pytest.raises(ValueError, match="'w'"):
            AdamMini([("w", p) for p in model.parameters()], layouts=layout, flat_shards=shards)


def keep(folder, first, last, load):
    """Train some steps from one folder's checkpoint to another's, on as many ranks as there are; the weights."""
    if "RANK" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
        model = sharded(init_device_mesh("cpu", (dist.get_world_size(),)))
    else:
        model = Model()
    optimizer = make(model, "normuon")
    if load:
        state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
        dcp.load(state, checkpoint_id=folder / str(first - 1))
        set_model_state_dict(model, state["model"])
        set_optimizer_state_dict(model, optimizer, optim_state_dict=state["optimizer"])
    train(model, optimizer, last, first)
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(state, checkpoint_id=folder / str(last))
    return {name: whole(p) for name, p in named(model)}


def fitted(name, folder):
    """A fit under a strategy, the same resumed in its middle, and whether ranks shared work while it ran, and after."""
    warnings.simplefilter("ignore")
    seen = []

    class Sees(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            seen.append(trainer.optimizers[0]._stepper.orthogonal.group is not None)

    options = {"partition": "normuon", "blocks": {}}
    trainer = fit(name, Sees(), max_epochs=2, **options)
    after = trainer.optimizers[0]._stepper.orthogonal.group
    assert any(isinstance(layout, MatrixLayout) for layout in trainer.optimizers[0].layouts.values())
    fit(name, **options).save_checkpoint(folder / "half.ckpt")
    resumed = fit(name, max_epochs=2, ckpt_path=str(folder / "half.ckpt"), **options)
    return whole_weights(trainer), whole_weights(resumed), seen, after is None


LINE = (check_fsdp2, check_ddp, check_communication, check_without_gradients, check_small_dtypes, check_clipping, check_state)
CHECKS = {2: (*LINE, check_refusals), 4: (check_fsdp2, check_state, check_refusals)}
"""By the number of ranks: four for a square of them, and for those that hold nothing."""


def run_checks(world):
    """Run all checks in one group of ranks; what went wrong, by name."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    return launch.run_checks(CHECKS[world], world)
