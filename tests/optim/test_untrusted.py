"""What users and autograd do to tensors between steps, and what damaged states hold: right numbers, or an error before anything changes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, BlockLayout

PATHS = {"default": {}, "loop": {"fused": False, "foreach": False}, "foreach": {"foreach": True}}
MOMENTA = [None, "8bit"]
SHAPE = (64, 300)  # two runs of 8-bit codes per row


def make(momentum_dtype=None, layout=None, **options):
    torch.manual_seed(0)
    layout = layout or BlockLayout.each_line(SHAPE)
    p, beside = nn.Parameter(torch.randn(layout.shape)), nn.Parameter(torch.randn(layout.shape))
    params = {"beside": beside, "p": p}
    optimizer = AdamMini(params.items(), lr=0.01, layouts=dict.fromkeys(params, layout), momentum_dtype=momentum_dtype, **options)
    step(params, optimizer, 0)
    return params, optimizer


def step(params, optimizer, seed):
    generator = torch.Generator().manual_seed(100 + seed)
    for p in params.values():
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
    optimizer.step()


def same_values_in_other_memory(kept):
    """Transposed, with gaps, and, where all values are the same, broadcast."""
    yield kept.transpose(0, 1).contiguous().transpose(0, 1)
    yield torch.cat([kept, kept * 0], 1)[:, : kept.shape[1]]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("momentum_dtype", MOMENTA)
def test_strides_of_any_tensor_of_the_state_are_followed(path, momentum_dtype):
    for key in ("exp_avg", "exp_avg_sq", "exp_avg_scale"):
        for kind in range(2):
            (ours, optimizer), (theirs, plain) = make(momentum_dtype, **PATHS[path]), make(momentum_dtype, **PATHS[path])
            if key not in optimizer.state[ours["p"]]:
                continue
            for seed in (1, 2, 3):
                kept = optimizer.state[ours["p"]][key]
                optimizer.state[ours["p"]][key] = list(same_values_in_other_memory(kept))[kind]
                step(ours, optimizer, seed), step(theirs, plain, seed)
            torch.testing.assert_close(ours["p"], theirs["p"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("momentum_dtype", MOMENTA)
def test_broadcast_tensors_of_the_state_get_memory_of_their_own(path, momentum_dtype):
    params, optimizer = make(momentum_dtype, **PATHS[path])
    state = optimizer.state[params["p"]]
    for key in state.keys() & {"exp_avg_sq", "exp_avg_scale"}:
        state[key] = torch.full((1, 1), 0.5).expand(state[key].shape)
    step(params, optimizer, 1)
    assert all(not torch._debug_has_internal_overlap(kept) for kept in state.values())
    assert bool(params["p"].isfinite().all())


@pytest.mark.parametrize("momentum_dtype", MOMENTA)
def test_loading_blocks_of_other_strides_is_right(momentum_dtype):
    layout = BlockLayout((32, 16, 16), dims=(2,))
    weights = []
    for change in (False, True):
        params, optimizer = make(momentum_dtype, layout)
        state_dict = copy.deepcopy(optimizer.state_dict())
        if change:
            for entry in state_dict["state"].values():
                for key in entry.keys() - {"step"}:
                    entry[key] = entry[key].transpose(0, 1).contiguous().transpose(0, 1)
        optimizer.load_state_dict(state_dict)
        step(params, optimizer, 1)
        weights.append(params["p"].detach())
    assert torch.equal(*weights)


@pytest.mark.parametrize("path", PATHS)
def test_the_step_count_is_looked_at(path):
    params, optimizer = make(**PATHS[path])
    optimizer.state[params["p"]]["step"] = optimizer.state[params["p"]]["step"].to("meta")
    before = {name: p.detach().clone() for name, p in params.items()}
    with pytest.raises(RuntimeError, match="'p'.*counts its steps"):
        step(params, optimizer, 1)
    assert all(torch.equal(p, before[name]) for name, p in params.items())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("momentum_dtype", MOMENTA)
@pytest.mark.parametrize("lazy", [lambda g: torch._neg_view(-g), lambda g: (g * 1j).conj().imag.neg()], ids=["view", "of a conjugate"])
def test_gradients_whose_memory_holds_the_opposite(path, momentum_dtype, lazy):
    (ours, optimizer), (theirs, plain) = make(momentum_dtype, **PATHS[path]), make(momentum_dtype, **PATHS[path])
    for seed in range(1, 5):
        grad = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
        ours["p"].grad, theirs["p"].grad = lazy(grad), grad
        optimizer.step(), plain.step()
    torch.testing.assert_close(ours["p"], theirs["p"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("path", PATHS)
def test_gradients_that_are_zero_without_memory(path):
    (ours, optimizer), (theirs, plain) = make(**PATHS[path]), make(**PATHS[path])
    ours["p"].grad, theirs["p"].grad = torch._efficientzerotensor(SHAPE), torch.zeros(SHAPE)
    optimizer.step(), plain.step()
    assert torch.equal(ours["p"], theirs["p"])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("momentum_dtype", MOMENTA)
def test_elements_that_share_memory_are_refused_before_anything_is_written(path, momentum_dtype):
    params, optimizer = make(momentum_dtype, **PATHS[path])
    params["p"].data = params["p"].data[:1].expand(SHAPE)
    before, steps = params["beside"].detach().clone(), optimizer.state[params["beside"]]["step"].clone()
    with pytest.raises(RuntimeError, match="'p'.*share memory.*clone"):
        step(params, optimizer, 1)
    assert torch.equal(params["beside"], before)
    assert torch.equal(optimizer.state[params["beside"]]["step"], steps)


DAMAGE = {
    "no scales": lambda entry: entry.pop("exp_avg_scale"),
    "codes of another dtype": lambda entry: entry.update(exp_avg=entry["exp_avg"].to(torch.uint8)),
    "scales of another dtype": lambda entry: entry.update(exp_avg_scale=entry["exp_avg_scale"].to(torch.int8)),
    "floats beside scales": lambda entry: entry.update(exp_avg=torch.randn(SHAPE)),
    "second moments in integers": lambda entry: entry.update(exp_avg_sq=entry["exp_avg_sq"].to(torch.int8)),
    "a count that is none": lambda entry: entry.update(step=None),
    "a count that is NaN": lambda entry: entry.update(step=torch.tensor(math.nan)),
    "a negative count": lambda entry: entry.update(step=-5.0),
    "two counts": lambda entry: entry.update(step=torch.ones(2)),
    "no first moment": lambda entry: entry.update(exp_avg=None),
    "second moments without values": lambda entry: entry.update(exp_avg_sq=entry["exp_avg_sq"].to("meta")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_refused_by_name_and_nothing_changes(damage):
    params, optimizer = make("8bit")
    state_dict = copy.deepcopy(optimizer.state_dict())
    state_dict["param_groups"][0]["lr"] = 7.0
    DAMAGE[damage](state_dict["state"][1])
    before = copy.deepcopy(optimizer.state[params["p"]])
    with pytest.raises(ValueError, match="parameter 'p'"):
        optimizer.load_state_dict(state_dict)
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert all(torch.equal(optimizer.state[params["p"]][key], kept) for key, kept in before.items())


@pytest.mark.parametrize("state_dict", [{"param_groups": []}, {}, {"state": {}}], ids=str)
def test_what_is_no_state_dict_is_refused(state_dict):
    with pytest.raises(ValueError, match="The loaded state has no"):
        make()[1].load_state_dict(state_dict)


def test_a_replacement_that_fails_leaves_the_state():
    params, optimizer = make()
    p = params["p"]
    optimizer.state[p]["exp_avg"] = torch.zeros(32, 300)
    with pytest.raises(Exception):  # noqa: B017, PT011
        optimizer.replace_parameter(p, nn.Parameter(torch.ones(SHAPE)), rows=torch.arange(64))
    assert optimizer.state[p]
    with pytest.raises(ValueError, match="a parameter of this optimizer already"):
        optimizer.replace_parameter(p, params["beside"])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prepared", [False, True])
def test_autograd_knows_that_parameters_changed(path, prepared):
    """As after AdamW's step, what was saved for backward is refused."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    layouts = {name: BlockLayout.whole(p.shape) for name, p in model.named_parameters()}
    optimizer = AdamMini(model.named_parameters(), layouts=layouts, **PATHS[path])
    for _ in range(3 if prepared else 0):
        model(torch.randn(2, 4)).square().mean().backward()
        optimizer.step()
    loss = model(torch.randn(2, 4)).square().mean()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
