"""What each rank of the tests of shards runs of blocks that change in the middle of a run; ``test_shards.py`` starts the ranks.

A sharded optimizer is compared with one on whole tensors, on each rank.
"""

from __future__ import annotations

import pytest
import torch
from torch.distributed.fsdp import FullyShardedDataParallel

from lightning_adam_mini import AdamMini, BlockLayout, MatrixLayout, find_flat_shards
from lightning_adam_mini.optim.shards.whole import whole_elements
from tests.optim.shard_codes import LAYOUTS, Model, meshes, named, train, whole

ELEMENTS = {name: BlockLayout.per_parameter(layout.shape) for name, layout in LAYOUTS.items()}
COARSER = {**LAYOUTS, "conv": BlockLayout.factored((16, 32, 3, 3)), "long_rows": BlockLayout.factored((9, 700))}


def make(named_parameters, **options):
    return AdamMini(named_parameters, lr=1e-2, betas=(0.9, 0.95), layouts=ELEMENTS, **options)


def close(found, expected, what):
    for name in LAYOUTS:
        difference = (found[name].expand(LAYOUTS[name].shape) - expected[name].expand(LAYOUTS[name].shape)).abs().max()
        assert difference <= 1e-5 * expected[name].abs().max(), (what, name, float(difference))


def on_one_device(options):
    model = Model()
    optimizer = make(named(model), **options)
    train(model, optimizer, 1, 4)
    before = {name: optimizer.state[p]["exp_avg_sq"].clone() for name, p in named(model)}
    optimizer.set_layouts(COARSER)
    train(model, optimizer, 4, 7)
    return before, optimizer.second_moments(), dict(named(model))


def check_blocks_that_change(world):
    """One second moment per element becomes one per block, whichever ranks hold parts of it; before, all of it can be gathered."""
    for options in ({}, {"momentum_dtype": "8bit"}):
        before, moments, weights = on_one_device(options)
        for kind, build in meshes(world):
            model = build()
            optimizer = make(named(model), **options)
            train(model, optimizer, 1, 4)
            close({n: whole_elements(p, optimizer.state[p]["exp_avg_sq"]) for n, p in named(model)}, before, kind)
            optimizer.set_layouts(COARSER)
            kept = sum(state[key].numel() for state in optimizer.state.values() for key in ("exp_avg_sq", "exp_avg_sq_col") if key in state)
            assert kept < sum(layout.num_blocks for layout in COARSER.values()) + 1
            train(model, optimizer, 4, 7)
            close(optimizer.second_moments(), moments, kind)
            if not options:  # codes of rows that are cut round otherwise
                close({name: whole(p) for name, p in named(model)}, {name: p.detach() for name, p in weights.items()}, kind)
            with pytest.raises(ValueError, match="'rows' is sharded, so it cannot go over to other updates"):
                optimizer.set_layouts({"rows": MatrixLayout((70, 64))})


def check_blocks_that_change_under_fsdp1(world):
    """The same of flat ranges, of which a rank may hold nothing."""
    for options in ({}, {"momentum_dtype": "8bit"}):
        before, moments, weights = on_one_device(options)
        model = FullyShardedDataParallel(Model(channels_last=True), device_id=torch.device("cpu"), use_orig_params=True)
        names = {p: name for name in LAYOUTS for key, p in model.named_parameters() if f".{name}." in f".{key}"}
        shards = find_flat_shards(model)
        optimizer = make([(names[p], p) for p in model.parameters()], flat_shards=shards, **options)
        for t in range(1, 7):
            optimizer.zero_grad()
            model(t).backward()
            optimizer.step()
            if t == 3:
                kept = {names[p]: whole_elements(p, optimizer.state[p].get("exp_avg_sq"), shards[p]) for p in model.parameters()}
                close(kept, before, "FSDP1")
                optimizer.set_layouts(COARSER)
        close(optimizer.second_moments(), moments, "FSDP1")
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            found = {name: p for name in LAYOUTS for key, p in model.named_parameters() if f".{name}." in f".{key}"}
            if not options:
                close({name: p.detach() for name, p in found.items()}, {name: p.detach() for name, p in weights.items()}, "FSDP1")


CHECKS = (check_blocks_that_change, check_blocks_that_change_under_fsdp1)
