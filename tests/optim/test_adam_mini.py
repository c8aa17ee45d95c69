"""AdamMini as an optimizer among torch's. The arithmetic of its steps is tested in ``backends/test_arithmetic.py``."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, AdamMiniWarning, BlockLayout
from lightning_adam_mini.optim import state_bytes
from tests.optim.backends.table import FEW, KINDS, give, layouts_of, make_grads, make_params

SOME = {name: KINDS[name] for name in (*FEW, "vector", "bias of heads", "heads that interleave", "output channels")}
LAYOUTS = layouts_of(SOME)


def make(dtype=torch.float32) -> dict[str, nn.Parameter]:
    return make_params(SOME, dtype=dtype)


def feed(params, step: int, dtype=torch.float32) -> None:
    give(params, make_grads(step, SOME, dtype))


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("reference_class", [torch.optim.AdamW, torch.optim.Adam])
def test_without_layouts_is_torch_to_the_bit(maximize, weight_decay, reference_class):
    ours, theirs = make(), make()
    kwargs = dict(lr=3e-3, betas=(0.8, 0.99), eps=1e-6, weight_decay=weight_decay, maximize=maximize)
    a = AdamMini(ours.values(), decoupled_weight_decay=reference_class is torch.optim.AdamW, layouts={}, **kwargs)
    b = reference_class(theirs.values(), **kwargs)
    for step in range(50):
        feed(ours, step), feed(theirs, step)
        a.step(), b.step()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_blocks_of_one_element_are_adamw_to_the_bit():
    p, q = nn.Parameter(torch.tensor([[1.5]])), nn.Parameter(torch.tensor([[1.5]]))
    a = AdamMini([("p", p)], layouts={"p": BlockLayout.whole((1, 1))})
    b = torch.optim.AdamW([q])
    for step in range(50):
        p.grad = q.grad = torch.tensor([[float(step) - 20]])
        a.step(), b.step()
    assert torch.equal(p, q)


def test_groups_keep_their_own_settings_and_extra_keys():
    params = make()
    names = list(params)
    groups = [
        {"params": [(n, params[n]) for n in names[:4]], "lr": 0.1, "name": "fast", "initial_lr": 0.1},
        {"params": [(n, params[n]) for n in names[4:]], "weight_decay": 0.5, "betas": (0.5, 0.9)},
    ]
    optimizer = AdamMini(groups, lr=0.01, weight_decay=0.0, layouts=LAYOUTS)
    assert [g.get("name") for g in optimizer.param_groups] == ["fast", None]
    kept = [(g["lr"], g["weight_decay"], g["betas"], g.get("initial_lr")) for g in optimizer.param_groups]
    assert kept == [(0.1, 0.0, (0.9, 0.999), 0.1), (0.01, 0.5, (0.5, 0.9), None)]


def test_without_gradients_there_is_no_state():
    optimizer = AdamMini(make().items(), layouts=LAYOUTS)
    optimizer.step()
    assert not optimizer.state
    assert not optimizer.second_moments()
    assert not optimizer.block_learning_rates()


def test_closure_runs_with_gradients_and_returns_the_loss():
    p = nn.Parameter(torch.ones(3))
    optimizer = AdamMini([p], layouts={})

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert (p < 1).all()


def test_works_under_a_scheduler_that_moves_lr_and_beta1():
    params = make()
    optimizer = AdamMini(params.items(), lr=0.1, layouts=LAYOUTS)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20, cycle_momentum=True)
    betas = set()
    for step in range(20):
        feed(params, step)
        optimizer.step()
        betas.add(optimizer.param_groups[0]["betas"][0])
        if step < 19:
            scheduler.step()
    assert len(betas) > 10


# ---- copies and states


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_step_as_the_original(clone):
    params = make()
    optimizer = AdamMini(params.items(), layouts=LAYOUTS)
    feed(params, 0)
    optimizer.step()
    twin = clone(optimizer)
    assert twin.layouts == optimizer.layouts
    twins = dict(zip(params, twin.param_groups[0]["params"], strict=True))
    for step in range(1, 4):
        feed(params, step), feed(twins, step)
        optimizer.step(), twin.step()
    assert all(torch.equal(params[k], twins[k]) for k in params)
    assert twin.parameter_names().keys() == set(twins.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_dict_resumes_to_the_bit_through_a_file(dtype):
    params = make(dtype=dtype)
    optimizer = AdamMini(params.items(), layouts=LAYOUTS)
    for step in range(5):
        feed(params, step, dtype)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twins = {k: nn.Parameter(p.detach().clone()) for k, p in params.items()}
    twin = AdamMini(twins.items(), layouts=LAYOUTS)
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert all(v.dtype == torch.float32 for v in twin.second_moments().values())
    for step in range(5, 10):
        feed(params, step, dtype), feed(twins, step, dtype)
        optimizer.step(), twin.step()
    assert all(torch.equal(params[k], twins[k]) for k in params)


def test_loading_copies_so_that_two_optimizers_do_not_share_second_moments():
    params, twins = make(), make()
    a, b = AdamMini(params.items(), layouts=LAYOUTS), AdamMini(twins.items(), layouts=LAYOUTS)
    feed(params, 0)
    a.step()
    b.load_state_dict(a.state_dict())
    before = {k: v.clone() for k, v in b.second_moments().items()}
    feed(params, 1)
    a.step()
    assert all(torch.equal(before[k], v) for k, v in b.second_moments().items())


# ---- groups that come later


def test_late_group_finds_its_layout_by_name_or_by_known_parameter():
    params = make()
    names = list(params)
    optimizer = AdamMini([params[names[0]]], layouts=LAYOUTS, named_parameters=params.items())
    optimizer.add_param_group({"params": [params[n] for n in names[1:]], "lr": 0.5})
    assert optimizer.layouts == LAYOUTS
    named = AdamMini([(names[0], params[names[0]])], layouts=LAYOUTS)
    named.add_param_group({"params": [(n, params[n]) for n in names[1:]]})
    assert named.layouts == LAYOUTS


def test_late_parameter_without_layout_gets_the_default_and_says_so():
    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3, 2))
    optimizer = AdamMini([("p", p)], layouts={"p": BlockLayout.whole((2, 2))})
    with pytest.warns(AdamMiniWarning, match="No layout for 1 parameter \\('q'\\)"):
        optimizer.add_param_group({"params": [("q", q)]})
    assert optimizer.layouts["q"].is_per_parameter


def test_failed_add_param_group_changes_nothing():
    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3, 2))
    optimizer = AdamMini([("p", p)], layouts={"p": BlockLayout.whole((2, 2)), "q": BlockLayout.whole((9, 9))})
    with pytest.raises(ValueError, match=r"parameter 'q' is for a tensor of shape \(9, 9\), but the parameter has shape \(3, 2\)"):
        optimizer.add_param_group({"params": [("q", q)]})
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        optimizer.add_param_group({"params": [("q", q)], "lr": -1})
    assert len(optimizer.param_groups) == 1


# ---- bad input


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": -1e-3}, "Invalid learning rate: -0.001"),
        ({"lr": float("nan")}, "Invalid learning rate: nan"),
        ({"lr": torch.ones(2)}, r"Tensor lr must be 1-element, but has shape \(2,\)"),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, -0.5)}, "Invalid beta parameter at index 1: -0.5"),
    ],
)
def test_options_out_of_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AdamMini([nn.Parameter(torch.ones(2))], **kwargs)


def test_layouts_for_other_parameters():
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="None of the 1 layouts .such as 'weight'. is for a parameter of this optimizer .such as p."):
        AdamMini([("p", p)], layouts={"weight": BlockLayout.per_parameter((2,))})
    with pytest.raises(ValueError, match="because its parameters have no names"):
        AdamMini([p], layouts={"weight": BlockLayout.per_parameter((2,))})


def test_sparse_gradient_names_the_parameter_before_anything_changed():
    embedding = nn.Embedding(5, 2, sparse=True)
    other = nn.Parameter(torch.ones(2))
    optimizer = AdamMini([("other", other), *embedding.named_parameters("table")], layouts={})
    (embedding(torch.tensor([1])).sum() + other.sum()).backward()
    with pytest.raises(RuntimeError, match=r"parameter 'table.weight' of shape \(5, 2\) because its gradient is sparse"):
        optimizer.step()
    assert torch.equal(other, torch.ones(2))
    assert not optimizer.state


def test_complex_parameters_are_refused_by_name_when_they_come():
    p, q = nn.Parameter(torch.ones(2, dtype=torch.complex64)), nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"'p' of shape \(2,\) because it is complex.*view_as_real"):
        AdamMini([("q", q), ("p", p)], layouts={})
    optimizer = AdamMini([("q", q)], layouts={})
    with pytest.raises(ValueError, match="'p'.*complex"):
        optimizer.add_param_group({"params": [("p", p)]})
    assert len(optimizer.param_groups) == 1


def test_without_layouts_it_says_that_it_is_plain_adam():
    p = nn.Parameter(torch.ones(2, 3))
    with pytest.warns(AdamMiniWarning, match=r"plain AdamW.*layouts=partition_model\(model\).*layouts=\{\}"):
        AdamMini([p])
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdamMiniWarning)
        AdamMini([p], layouts={})
        AdamMini([{"params": [p], "layouts": [BlockLayout.whole((2, 3))]}])


def test_set_layouts_goes_on_as_if_blocks_had_been_so_from_the_start():
    """The mean over blocks is linear, so averaging late and averaging early agree, as long as nothing has moved yet (lr = 0)."""
    layouts = {"w": BlockLayout.grouped((4, 6), "q:2x2")}
    runs = []
    for early in (True, False):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(4, 6))
        optimizer = AdamMini([("w", p)], lr=0.0, layouts=layouts if early else {})
        for step in range(6):
            if step == 3:
                optimizer.set_layouts(layouts)
                for group in optimizer.param_groups:
                    group["lr"] = 1e-2
            p.grad = torch.randn(4, 6)
            optimizer.step()
        runs.append(p.detach())
    torch.testing.assert_close(*runs, rtol=1e-6, atol=1e-7)
    assert state_bytes(optimizer) == 4 * (24 + 2 + 1)


def test_set_layouts_spreads_over_finer_blocks_and_refuses_others_whole():
    torch.manual_seed(0)
    ps = {name: torch.nn.Parameter(torch.randn(4, 6)) for name in ("a", "b")}
    optimizer = AdamMini(ps.items(), layouts={name: BlockLayout((4, 6), dims=(1,)) for name in ps})
    for p in ps.values():
        p.grad = torch.randn(4, 6)
    optimizer.step()
    rows = {name: v.clone() for name, v in optimizer.second_moments().items()}
    columns, single = BlockLayout((4, 6), dims=(0,)), BlockLayout.per_parameter((4, 6))
    with pytest.raises(ValueError, match="'b'.*neither finer nor coarser"):
        optimizer.set_layouts({"a": single, "b": columns})
    assert optimizer.layouts["a"].num_blocks == 4
    with pytest.raises(ValueError, match="None of the 1 layouts"):
        optimizer.set_layouts({"c": single})
    optimizer.set_layouts({"a": single})
    assert torch.equal(optimizer.second_moments()["a"], rows["a"].expand(4, 6))
    assert torch.equal(optimizer.second_moments()["b"], rows["b"])
