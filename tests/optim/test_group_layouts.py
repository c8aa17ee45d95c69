"""Groups that change between steps: parameters that leave, come back, are replaced or stand there twice; and states that lack options."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from lightning_adam_mini import AdamMini, AdamMiniWarning, BlockLayout, convert_optimizer_, partition_model


def params(n=4, rows=5):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(rows, 3, generator=generator)) for _ in range(n)]


def rows_of(ps):
    return {f"p{i}": BlockLayout.each_line(tuple(p.shape)) for i, p in enumerate(ps)}


def named(ps):
    return [(f"p{i}", p) for i, p in enumerate(ps)]


def give_gradients(ps, seed):
    generator = torch.Generator().manual_seed(100 + seed)
    for p in ps:
        p.grad = torch.randn(p.shape, generator=generator)


def filtered(ps, group):
    group["params"] = group["params"][::2]


def reordered(ps, group):
    group["params"].reverse()


def extended(ps, group):
    group["params"].append(ps[3])


def emptied(ps, group):
    group["params"].clear()


@pytest.mark.parametrize("change", [filtered, reordered, extended, emptied], ids=lambda f: f.__name__)
@pytest.mark.parametrize("foreach", [False, True, None])
def test_parameters_are_followed_by_identity(change, foreach):
    """Each parameter steps as it would alone, whatever stands beside it."""
    ps, alone = params(), params()
    optimizer = AdamMini(ps[:3], layouts=rows_of(ps), named_parameters=named(ps), foreach=foreach)
    singles = [AdamMini([(f"p{i}", p)], layouts=rows_of(ps), foreach=foreach) for i, p in enumerate(alone)]
    for step in range(6):
        if step == 3:
            change(ps, optimizer.param_groups[0])
        give_gradients(ps, step), give_gradients(alone, step)
        optimizer.step()
        inside = {id(p) for p in optimizer.param_groups[0]["params"]}
        for p, single in zip(ps, singles, strict=True):
            if id(p) in inside:
                single.step()
        assert len(optimizer.param_groups[0]["layouts"]) == len(optimizer.param_groups[0]["params"])
    assert all(torch.equal(p, q) for p, q in zip(ps, alone, strict=True))
    ours = [i for i, p in enumerate(ps) if id(p) in inside]
    assert set(optimizer.layouts) == {f"p{i}" for i in ours}
    if change in (filtered, emptied):
        with pytest.raises(ValueError, match=r"moments of . parameters? \('p.'.*in no group.*state.pop"):
            optimizer.state_dict()
        for i in set(range(3)) - set(ours):
            optimizer.state.pop(ps[i])
    state = optimizer.state_dict()
    assert len(state["param_groups"][0]["layouts"]) == len(state["state"]) == len(ours)


def test_an_unknown_parameter_that_is_put_into_a_group_keeps_a_second_moment_per_element_and_that_is_said():
    ps, stranger = params(), nn.Parameter(torch.ones(2, 2))
    optimizer = AdamMini(named(ps), layouts=rows_of(ps))
    optimizer.param_groups[0]["params"].append(stranger)
    give_gradients([*ps, stranger], 0)
    with pytest.warns(AdamMiniWarning, match="No layout for 1 parameter .'param_groups.0.params.4'.*layouts="):
        optimizer.step()
    assert optimizer.state[stranger]["exp_avg_sq"].shape == (2, 2)


# ---- a parameter twice in a group


@pytest.mark.parametrize("form", ["parameters", "names", "group"])
@pytest.mark.parametrize("blocks", [False, True])
def test_a_parameter_twice_in_a_group_is_warned_of_by_torch_and_trains_as_in_adamw(form, blocks):
    tied, other = params(2)
    theirs = [nn.Parameter(p.detach().clone()) for p in (tied, other)]
    layouts = rows_of([tied, other]) if blocks else {}
    given = {
        "parameters": [tied, other, tied],
        "names": [("p0", tied), ("p1", other), ("again", tied)],
        "group": [{"params": [tied, other, tied]}],
    }[form]
    with pytest.warns(UserWarning, match="duplicate parameters"):
        ours = AdamMini(given, layouts=layouts, named_parameters=named([tied, other]))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        plain = AdamW([theirs[0], theirs[1], theirs[0]])
    for step in range(5):
        give_gradients([tied, other], step), give_gradients(theirs, step)
        ours.step(), plain.step()
        if step == 2:
            ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert ours.state[tied]["step"] == plain.state[theirs[0]]["step"] == 10
    if not blocks:
        assert torch.equal(tied, theirs[0])
        assert torch.equal(other, theirs[1])
    else:
        assert ours.layouts == layouts


def test_tied_weights_of_a_model_become_blocks():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = AdamW([*model.embed.parameters(), *model.head.parameters()])
    convert_optimizer_(optimizer, partition_model(model, "tensor"), model.named_parameters())
    model.head(model.embed(torch.tensor([1, 2]))).sum().backward()
    optimizer.step()
    assert optimizer.state[model.embed.weight]["exp_avg_sq"].numel() == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        by_all_names = AdamMini(model.named_parameters(remove_duplicate=False), layouts=partition_model(model, "tensor"))
    assert by_all_names.layouts == partition_model(model, "tensor")


# ---- rows that are pruned and added


def by_hand(optimizer, old, new, rows):
    """What Gaussian splatting does to AdamW."""
    state = optimizer.state.pop(old)
    for key in ("exp_avg", "exp_avg_sq"):
        moved = state[key][rows.clamp_min(0)]
        moved[rows < 0] = 0
        state[key] = moved
    optimizer.param_groups[0]["params"][0] = new
    optimizer.state[new] = state


ROWS = {
    "pruned": torch.tensor([0, 3, 4]),
    "extended": torch.tensor([0, 1, 2, 3, 4, -1, -1]),
    "reordered": torch.tensor([4, 2, 0, 1, 3]),
    "both": torch.tensor([3, -1, 0]),
    "all": torch.tensor([], dtype=torch.int64),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("way", ["by hand", "replace_parameter"])
@pytest.mark.parametrize("converted", [False, True])
def test_rows_change_as_in_adamw_with_a_second_moment_per_element(rows, way, converted):
    rows = ROWS[rows]
    (p,), (q,) = params(1), params(1)
    plain = AdamW([q])
    ours = convert_optimizer_(AdamW([p]), {"p": BlockLayout.per_parameter(p.shape)}, [("p", p)]) if converted else AdamMini([p], layouts={})
    for step in range(6):
        if step == 3:
            new = [nn.Parameter(torch.cat([x.detach(), torch.ones(1, 3)])[rows]) for x in (p, q)]
            by_hand(plain, q, new[1], rows)
            by_hand(ours, p, new[0], rows) if way == "by hand" else ours.replace_parameter(p, new[0], rows)
            p, q = new
        give_gradients([p], step), give_gradients([q], step)
        ours.step(), plain.step()
    assert torch.equal(p, q)
    assert len(ours.state) == len(plain.state) == 1


@pytest.mark.parametrize("momentum_dtype", [None, torch.bfloat16, "8bit"])
def test_rows_of_blocks_go_with_their_rows(momentum_dtype):
    p = nn.Parameter(torch.randn(100, 60))
    optimizer = AdamMini([("p", p)], layouts={"p": BlockLayout.each_line((100, 60))}, momentum_dtype=momentum_dtype)
    give_gradients([p], 0)
    optimizer.step()
    before, rates = optimizer.second_moments()["p"], optimizer.block_learning_rates()["p"]
    keep = torch.arange(0, 100, 2)
    new = nn.Parameter(p.detach()[keep])
    optimizer.replace_parameter(p, new, keep)
    assert torch.equal(optimizer.second_moments()["p"], before[keep])
    assert torch.equal(optimizer.block_learning_rates()["p"], rates[keep])
    assert optimizer.layouts == {"p": BlockLayout.each_line((50, 60))}
    assert ("exp_avg_scale" in optimizer.state[new]) is False, "below 4,096 elements 8 bits are not used"
    give_gradients([new], 1)
    optimizer.step()
    copy.deepcopy(optimizer).load_state_dict(optimizer.state_dict())


def test_the_second_moment_of_a_block_over_rows_stays():
    (p,) = params(1)
    optimizer = AdamMini([("p", p)], layouts={"p": BlockLayout.whole((5, 3))})
    give_gradients([p], 0)
    optimizer.step()
    before = optimizer.second_moments()["p"].clone()
    new = nn.Parameter(torch.cat([p.detach(), torch.zeros(2, 3)]))
    optimizer.replace_parameter(p, new)
    assert torch.equal(optimizer.second_moments()["p"], before)
    assert torch.equal(optimizer.state[new]["exp_avg"][5:], torch.zeros(2, 3))
    with pytest.raises(ValueError, match="none of this optimizer's"):
        optimizer.replace_parameter(p, new)


@pytest.mark.parametrize(
    ("new", "rows", "message"),
    [
        (torch.ones(4, 2), None, "only the first dimension may differ"),
        (torch.ones(5, 3, dtype=torch.float64), None, "only the first dimension"),
        (torch.ones(4, 3), torch.arange(5), r"each of the 4 rows"),
        (torch.ones(5, 3), torch.ones(5, dtype=torch.bool), r"mask.nonzero\(\)"),
        (torch.ones(2, 3), torch.tensor([0, 5]), "from -1 to 4"),
    ],
)
def test_rows_that_do_not_fit(new, rows, message):
    (p,) = params(1)
    optimizer = AdamMini([("p0", p)], layouts=rows_of([p]))
    give_gradients([p], 0)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.replace_parameter(p, nn.Parameter(new), rows)
    assert str(optimizer.state_dict()) == str(before)


def test_heads_cannot_lose_rows():
    (p,) = params(1, rows=4)
    optimizer = AdamMini([("p", p)], layouts={"p": BlockLayout.grouped((4, 3), "q:2x2")})
    with pytest.raises(ValueError, match=r"grouped into blocks.*set_layouts\(\{'p': BlockLayout.each_line\(\(4, 3\)\)\}\)"):
        optimizer.replace_parameter(p, nn.Parameter(torch.ones(2, 3)), torch.tensor([0, 1]))


def test_pruning_blocks_by_hand_raises_and_names_the_way():
    (p,) = params(1)
    optimizer = AdamMini([("points", p)], layouts={"points": BlockLayout.whole((5, 3))})
    give_gradients([p], 0)
    optimizer.step()
    new = nn.Parameter(p.detach()[:3])
    state = optimizer.state.pop(p)
    optimizer.state[new] = {**state, "exp_avg": state["exp_avg"][:3]}
    optimizer.param_groups[0]["params"][0] = new
    give_gradients([new], 1)
    before = new.detach().clone()
    with pytest.raises(ValueError, match=r"shape \(3, 3\).*second moment of shape \(1, 1\).*replace_parameter\(old, .*'parameter'"):
        optimizer.step()
    assert torch.equal(new, before)


def test_a_replaced_parameter_is_freed():
    (p,) = params(1)
    optimizer = AdamMini([("p0", p)], layouts=rows_of([p]))
    give_gradients([p], 0)
    optimizer.step()
    late, new = weakref.ref(p), nn.Parameter(p.detach()[:2])
    optimizer.replace_parameter(p, new, torch.tensor([0, 1]))
    give_gradients([new], 1)
    optimizer.step()
    del p
    gc.collect()
    assert late() is None


# ---- states of older versions of torch


KEYS = ["decoupled_weight_decay", "maximize", "foreach", "fused", "capturable", "differentiable", "amsgrad"]


@pytest.mark.parametrize("keys", [*([key] for key in KEYS), KEYS], ids=lambda keys: "+".join(keys) if len(keys) == 1 else "all")
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("converted", [False, True])
def test_options_that_a_saved_group_lacks_are_the_defaults(keys, blocks, converted):
    ps, theirs = params(), params()
    plain = AdamW(theirs, lr=3e-3)
    for step in range(3):
        give_gradients(theirs, step)
        plain.step()
    state = copy.deepcopy(plain.state_dict())
    for key in keys:
        for group in state["param_groups"]:
            group.pop(key, None)
    ours = AdamW(ps) if converted else AdamMini(named(ps), layouts=rows_of(ps) if blocks else {})
    if converted:
        convert_optimizer_(ours, rows_of(ps) if blocks else {}, named(ps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdamMiniWarning)
        ours.load_state_dict(copy.deepcopy(state))
    plain.load_state_dict(state)
    with torch.no_grad():
        for p, q in zip(ps, theirs, strict=True):
            p.copy_(q)
    give_gradients(ps, 9), give_gradients(theirs, 9)
    ours.step(), plain.step()
    assert ours.param_groups[0]["lr"] == 3e-3
    if not blocks:
        assert all(torch.equal(p, q) for p, q in zip(ps, theirs, strict=True))


def test_a_step_that_an_old_version_counted_as_a_number_goes_on():
    (p,) = params(1)
    optimizer = AdamMini([p], layouts={})
    give_gradients([p], 0)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["step"] = 7
    optimizer.load_state_dict(state)
    optimizer.step()
    assert optimizer.state[p]["step"] == 8


def test_what_was_replaced_after_the_state_was_cleared_is_freed():
    p = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = AdamMini([("w", p)], layouts={"w": BlockLayout.each_line((64, 64))})
    replaced = []
    for _ in range(5):
        p.grad = torch.ones(64, 64)
        optimizer.step()
        replaced.append(weakref.ref(p))
        optimizer.state.clear()
        p = torch.nn.Parameter(torch.ones(64, 64))
        optimizer.param_groups[0]["params"][0] = p
    for _ in range(2):
        p.grad = torch.ones(64, 64)
        optimizer.step()
    optimizer.param_groups[0]["params"].append(torch.nn.Parameter(torch.ones(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step()
    del p
    gc.collect()
    assert sum(ref() is not None for ref in replaced) == 0
