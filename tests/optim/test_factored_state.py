"""The state of factored second moments: made, checked, converted, saved, loaded, pruned."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, AdamMiniWarning, BlockLayout, convert_optimizer_, to_adamw_state_dict
from lightning_adam_mini.optim import state_bytes

SHAPES = {"matrix": (6, 8), "kernel": (5, 4, 3, 2), "experts": (3, 5, 4), "vector": (7,), "by_head": (12, 5)}
LAYOUTS = {
    "matrix": BlockLayout.factored((6, 8)),
    "kernel": BlockLayout.factored((5, 4, 3, 2)),
    "experts": BlockLayout((3, 5, 4), dims=(2,), crossed=(1,)),
    "vector": BlockLayout.per_parameter((7,)),
    "by_head": BlockLayout((12, 5), dims=(1,), axis=0, lines="q:2x3|k:2x3", crossed=(0,)),
}
FACTORED = [name for name in SHAPES if name != "vector"]


def params(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in SHAPES.items()}


def train(optimizer, some, steps, first=0):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for p in some.values():
            p.grad = (
                torch.randn(p.shape, generator=generator) * torch.rand(p.shape[0], generator=generator).view(-1, *[1] * (p.ndim - 1))
            ).to(p.dtype)
        optimizer.step()


def make(some, layouts=LAYOUTS, **options):
    return AdamMini(some.items(), lr=1e-2, layouts=layouts, **options)


def means(name, v):
    """The means that the layout of a parameter keeps, of one value per element, worked out by hand; and what both average to."""
    if name == "matrix":
        return v.mean(1, keepdims=True), v.mean(0, keepdims=True), v.mean()
    if name == "kernel":
        return v.mean((1, 2, 3), keepdims=True), v.mean((0, 2, 3), keepdims=True), v.mean()
    if name == "experts":
        return v.mean(2, keepdims=True), v.mean(1, keepdims=True), v.mean((1, 2), keepdims=True)
    return v.reshape(4, 3, 5).mean((1, 2)).reshape(4, 1), v.mean(0, keepdims=True), v.mean()


def product(name, v):
    first, second, both = means(name, v)
    return (first.repeat(3, axis=0) if name == "by_head" else first) * second / both


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


# ---- from AdamW and back


@pytest.mark.parametrize("in_place", [True, False])
def test_adamw_becomes_factored_with_the_means_that_it_would_have_had(in_place):
    some = params()
    adamw = torch.optim.AdamW(some.values(), lr=1e-2)
    train(adamw, some, 3)
    before = {name: adamw.state[p]["exp_avg_sq"].double().numpy() for name, p in some.items()}
    if in_place:
        ours = convert_optimizer_(adamw, LAYOUTS, some.items())
    else:
        ours = make(some)
        with pytest.warns(AdamMiniWarning, match="averaged"):
            ours.load_state_dict(adamw.state_dict())
    for name in FACTORED:
        state = ours.state[some[name]]
        first, second, _ = means(name, before[name])
        np.testing.assert_allclose(state["exp_avg_sq"].numpy(), first, rtol=1e-6)
        np.testing.assert_allclose(state["exp_avg_sq_col"].numpy(), second, rtol=1e-6)
        np.testing.assert_allclose(ours.second_moments()[name].numpy(), product(name, before[name]), rtol=2e-6)
    assert "exp_avg_sq_col" not in ours.state[some["vector"]]
    train(ours, some, 1, first=3)


def test_the_way_to_adamw_is_dense_and_back_exact():
    some, twins = params(), params()
    ours = make(some)
    train(ours, some, 4)
    saved = to_adamw_state_dict(ours.state_dict())
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    adamw = torch.optim.AdamW(twins.values())
    with torch.no_grad():
        for name, p in twins.items():
            p.copy_(some[name])
    adamw.load_state_dict(saved)
    for name, p in twins.items():
        assert adamw.state[p]["exp_avg_sq"].shape == p.shape
        torch.testing.assert_close(adamw.state[p]["exp_avg_sq"], ours.second_moments()[name].expand(p.shape), rtol=1e-6, atol=0)
    back = make(twins)
    back.load_state_dict(saved)
    for name, p in twins.items():
        assert_same(back.state[p], ours.state[some[name]])
    edited = copy.deepcopy(saved)
    edited["state"][0]["exp_avg_sq"] *= 7  # by hand, which counts
    back.load_state_dict(edited)
    torch.testing.assert_close(back.second_moments()["matrix"], 7 * ours.second_moments()["matrix"])
    # What AdamW has learned since is what counts, and not the means that stand beside it.
    train(adamw, twins, 2, first=4)
    v = {name: adamw.state[p]["exp_avg_sq"].double().numpy() for name, p in twins.items()}
    with pytest.warns(AdamMiniWarning, match="averaged"):
        back.load_state_dict(adamw.state_dict())
    for name in FACTORED:
        np.testing.assert_allclose(back.second_moments()[name].numpy(), product(name, v[name]), rtol=2e-6)
        assert set(back.state[twins[name]]) == {"step", "exp_avg", "exp_avg_sq", "exp_avg_sq_col"}


# ---- other blocks


def test_rows_become_factored_and_factored_become_rows_columns_and_whole():
    rows = {name: LAYOUTS[name].margins[0] for name in FACTORED} | {"vector": LAYOUTS["vector"]}
    columns = rows | {name: LAYOUTS[name].margins[1] for name in FACTORED}
    whole = rows | {name: BlockLayout.whole(SHAPES[name]) for name in FACTORED}
    some = params()
    ours = make(some, rows)
    train(ours, some, 3)
    before = {name: v.clone() for name, v in ours.second_moments().items()}
    ours.set_layouts(LAYOUTS)
    for name in FACTORED:  # with rows alone columns are all alike
        torch.testing.assert_close(ours.second_moments()[name].expand(SHAPES[name]), before[name].expand(SHAPES[name]), rtol=1e-6, atol=0)
    train(ours, some, 2, first=3)
    saved = copy.deepcopy(ours.state_dict())
    for i, layouts in enumerate((rows, columns, whole)):
        other = make(some, layouts)
        with pytest.warns(AdamMiniWarning, match="averaged"):
            other.load_state_dict(saved)
        for name in FACTORED:
            kept = other.state[some[name]]
            assert "exp_avg_sq_col" not in kept
            source = saved["state"][list(SHAPES).index(name)]
            if i < 2:
                assert torch.equal(kept["exp_avg_sq"], source[("exp_avg_sq", "exp_avg_sq_col")[i]]), "exactly the mean that was kept"
            else:
                torch.testing.assert_close(kept["exp_avg_sq"].flatten(), source["exp_avg_sq"].mean().view(1), rtol=1e-6, atol=0)


def test_heads_and_columns_nest_and_what_does_not_is_refused():
    some = params()
    ours = make(some)
    train(ours, some, 1)
    heads = BlockLayout((12, 5), dims=(1,), axis=0, lines="q:2x3|k:2x3")
    ours.set_layouts({"by_head": heads})
    assert "exp_avg_sq_col" not in ours.state[some["by_head"]]
    ours.set_layouts({"by_head": LAYOUTS["by_head"]})
    ours.set_layouts({"by_head": BlockLayout.factored((12, 5))})  # each row of a head
    with pytest.raises(ValueError, match="'kernel' has blocks .* neither finer nor coarser"):
        ours.set_layouts({"kernel": BlockLayout((5, 4, 3, 2), dims=(0, 1))})  # kernel positions, which were averaged
    train(ours, some, 1, first=1)


# ---- copies, damage, rows


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"])
def test_copies_step_alike(copied):
    some = params()
    ours = make(some)
    train(ours, some, 2)
    others, other = copied((some, ours))
    train(ours, some, 2, first=2)
    train(other, others, 2, first=2)
    assert_same(some, others)


def test_a_state_that_lacks_a_margin_is_refused_by_name():
    some = params()
    ours = make(some)
    train(ours, some, 1)
    del ours.state[some["matrix"]]["exp_avg_sq_col"]
    before = {name: p.detach().clone() for name, p in some.items()}
    with pytest.raises(RuntimeError, match="'matrix' .* has no 'exp_avg_sq_col'"):
        ours.step()
    assert_same(before, some)
    ours.state[some["matrix"]]["exp_avg_sq_col"] = torch.zeros(8, 1)
    with pytest.raises(RuntimeError, match=r"'matrix' .* in shape \(8, 1\), but shape \(1, 8\) belongs to it"):
        ours.step()
    saved = make(params()).state_dict() | {"state": {0: {**ours.state[some["matrix"]]}}}
    with pytest.raises(ValueError, match="'matrix' has shape"):
        make(params()).load_state_dict(saved)


def test_rows_that_are_pruned_and_added_take_their_means_along():
    some = params()
    ours = make(some)
    train(ours, some, 3)
    old, keep = some["matrix"], torch.tensor([5, 0, -1, 2, 3])
    before = ours.state[old]
    new = nn.Parameter(torch.zeros(5, 8))
    ours.replace_parameter(old, new, rows=keep)
    state = ours.state[new]
    assert torch.equal(state["exp_avg_sq"], before["exp_avg_sq"][keep].masked_fill((keep < 0).view(-1, 1), 0))
    assert torch.equal(state["exp_avg_sq_col"], before["exp_avg_sq_col"])
    some["matrix"] = new
    train(ours, some, 1, first=3)


def test_few_rows_are_kept_per_element():
    p = nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    ours = AdamMini([("p", p)], layouts={"p": BlockLayout.factored((6, 4))})
    train(ours, {"p": p}, 2)
    v = ours.second_moments()["p"]
    new = nn.Parameter(p.detach()[:1])
    ours.replace_parameter(p, new, rows=torch.tensor([2]))
    assert set(ours.state[new]) == {"step", "exp_avg", "exp_avg_sq"}
    torch.testing.assert_close(ours.state[new]["exp_avg_sq"], v[2:3])
    train(ours, {"p": new}, 1)
    # With more rows again there are two means again.
    grown = nn.Parameter(torch.randn(20, 4, generator=torch.Generator().manual_seed(1)))
    v = ours.second_moments()["p"]
    ours.replace_parameter(new, grown, rows=torch.tensor([0] + [-1] * 19))
    assert ours.layouts["p"] == BlockLayout.factored((20, 4))
    torch.testing.assert_close(ours.state[grown]["exp_avg_sq"][0], v.mean(1))
    assert not ours.state[grown]["exp_avg_sq"][1:].any()
    train(ours, {"p": grown}, 1)


@pytest.mark.parametrize(("momentum", "most"), [(None, 4.05), ("8bit", 1.10)])
def test_bytes_of_the_real_state(momentum, most):
    """Of a block of GPT-2's shapes, and its token embedding cut short."""
    shapes = {"wte": (4096, 768), "qkv": (2304, 768), "out": (768, 768), "up": (3072, 768), "down": (768, 3072), "bias": (3072,)}
    some = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    layouts = {name: BlockLayout.factored(shape) for name, shape in shapes.items() if len(shape) == 2}
    ours = AdamMini(some.items(), layouts=layouts | {"bias": BlockLayout.per_parameter((3072,))}, momentum_dtype=momentum)
    for p in some.values():
        p.grad = torch.ones_like(p)
    ours.step()
    each = state_bytes(ours) / sum(p.numel() for p in some.values())
    assert most - 0.1 < each <= most


def test_rates_by_margin_are_small_and_those_by_element_are_the_products():
    some = params()
    ours = make(some, eps=0.0)
    train(ours, some, 3)
    by_margin, by_element = ours.margin_learning_rates(), ours.block_learning_rates()
    for name in FACTORED:
        assert [tuple(rate.shape) for rate in by_margin[name]] == [
            (12, 1) if name == "by_head" and i == 0 else margin.block_shape for i, margin in enumerate(LAYOUTS[name].margins)
        ]
        v = ours.second_moments()[name] / (1 - 0.999**3)
        torch.testing.assert_close(by_element[name], 1e-2 / v.sqrt(), rtol=1e-5, atol=0)
        first, second = (1e-2 / rate for rate in by_margin[name])
        both = second.square().mean([d for d in LAYOUTS[name].dims if d not in LAYOUTS[name].crossed], keepdim=True)
        torch.testing.assert_close(first.square() * second.square() / both, v, rtol=1e-5, atol=0)
