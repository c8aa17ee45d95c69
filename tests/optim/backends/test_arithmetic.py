"""The arithmetic of every backend: the tests are declared once, and run for all that are in the table."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, BlockLayout
from lightning_adam_mini.optim.backends import BACKENDS
from tests.optim.backends import exact
from tests.optim.backends.beside import OPTIONS, Beside, assert_close, assert_near
from tests.optim.backends.table import (
    CPP,
    FEW,
    FOREACH,
    GPU,
    HARD,
    KINDS,
    LOOP,
    ON_GPU,
    SLICES,
    TRITON,
    WAYS,
    double,
    give,
    in_order,
    large_kinds,
    layouts_of,
    make_grads,
    make_params,
    skip_without,
    ways,
)
from tests.optim.reference import ReferenceAdamMini

pytestmark = [
    pytest.mark.usefixtures("small_pieces"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of NumPy in Triton's interpreter: of what lies outside of masks
]

# ---- against Algorithm 1


@cache
def algorithm_1(names, steps, decoupled, maximize):
    """The weights and second moments that the algorithm gives, in float64 Python."""
    kinds = {name: KINDS[name] for name in names}
    blocks = {name: {index: int(block) for index, block in np.ndenumerate(kind.numbers)} for name, kind in kinds.items()}
    start = {name: p.detach().numpy() for name, p in make_params(kinds).items()}
    options = {k: OPTIONS[k] for k in ("lr", "betas", "eps", "weight_decay")}
    reference = ReferenceAdamMini(start, blocks, decoupled=decoupled, maximize=maximize, **options)
    for step in range(steps):
        reference.step({name: grad.numpy() for name, grad in make_grads(step, kinds).items()})
    return reference.params, reference.v


@ways()
@pytest.mark.parametrize(
    ("decoupled", "maximize", "lr"),
    [
        (True, False, 0.01),
        (True, True, torch.tensor(0.01)),
        (False, False, torch.tensor([0.01])),
        (False, True, 0.01),
    ],
    ids=["decoupled", "decoupled-maximize-tensor", "coupled-tensor of one dimension", "coupled-maximize"],
)
def test_equals_algorithm_1_in_float64(way, decoupled, maximize, lr):
    steps, kinds = (20, KINDS) if way.quick else (2, KINDS if decoupled and not maximize else way.kinds)
    params = make_params(kinds, device=way.device)
    options = {**OPTIONS, "lr": lr, "decoupled_weight_decay": decoupled, "maximize": maximize}
    optimizer = way.optimizer(params.items(), layouts_of(kinds), **options)
    for step in range(steps):
        grads = make_grads(step, kinds)
        give(params, grads)
        optimizer.step()
        assert all(torch.equal(p.grad.cpu(), grads[name]) for name, p in params.items()), "gradients are never written"
    way.check(optimizer)
    weights, second_moments = algorithm_1(tuple(kinds), steps, decoupled, maximize)
    found, rates = optimizer.second_moments(), optimizer.block_learning_rates()
    for name, p in params.items():
        numbers = kinds[name].numbers
        assert int(optimizer.state[p]["step"]) == steps
        assert_near(double(p), weights[name], name)
        v = np.array([second_moments[name][i] for i in range(numbers.max() + 1)])[numbers]
        assert_close(double(found[name]), v, 2e-5 * v, f"second moments of {name!r}")
        rate = 0.01 / (np.sqrt(v / (1 - 0.95**steps)) + 1e-8)
        assert_close(double(rates[name]), rate, 2e-5 * rate, f"learning rates of {name!r}")


@ways()
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_a_tensor_lr_of_one_element_may_change_in_place(way, shape):
    kinds = {name: KINDS[name] for name in ("rows", "columns", "elements")}
    lr = torch.full(shape, OPTIONS["lr"])
    beside = Beside.make(way, kinds, lr=lr)
    for step in range(4 if way.quick else 2):
        lr.mul_(0.5)
        beside.step(make_grads(step, kinds))


@ways()
def test_float64_parameters_are_stepped_in_float64(way):
    if way is TRITON and GPU:
        pytest.skip("on a GPU the kernels leave float64 to others")
    beside = Beside.make(way, way.kinds, torch.float64)
    for step in range(3):
        beside.step(make_grads(step, way.kinds, torch.float64))
    assert all(state["exp_avg_sq"].dtype == torch.float64 for state in beside.optimizer.state.values())


NARROW = [torch.bfloat16, torch.float16]
PAIRS = [(dtype, momentum_dtype) for dtype in NARROW for momentum_dtype in (None, torch.float32, torch.bfloat16)]


@ways()
@pytest.mark.parametrize(("dtype", "momentum_dtype"), [*PAIRS, (torch.float32, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("decoupled", [True, False], ids=["decoupled", "coupled"])
def test_half_precision_within_its_rounding(way, dtype, momentum_dtype, decoupled):
    names = ["rows", "heads", "columns", "elements"]
    kinds = {name: KINDS[name] for name in (names if not way.quick else [*names, "scalar", "whole", "alternate dimensions, channels last"])}
    beside = Beside.make(way, kinds, dtype, momentum_dtype, decoupled_weight_decay=decoupled)
    for step in range(3 if way.quick else 2):
        beside.step(make_grads(step, kinds, dtype, powers=0.5))
    states = beside.optimizer.state.values()
    assert all(state["exp_avg"].dtype == (momentum_dtype or dtype) for state in states)
    assert all(state["exp_avg_sq"].dtype == torch.float32 for state in states)


@ways(CPP, TRITON, LOOP, SLICES)  # on the CPU, torch's foreach operators round a number before they multiply by it
@pytest.mark.parametrize("dtype", NARROW)
def test_rounding_is_to_nearest_even_as_torch_does(way, dtype):
    """A step with decay only rounds x * decay, of which torch has an answer for each bit pattern."""
    if way is TRITON and not GPU and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter does not round")
    bits = torch.arange(-(2**15), 2**15, 1 if way.quick else 251, dtype=torch.int16).view(dtype)
    p = nn.Parameter(bits.to(way.device, copy=True))
    optimizer = way.optimizer([("p", p)], {"p": BlockLayout.whole(p.shape)}, lr=1e-2, weight_decay=1.0)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    way.check(optimizer)
    expected, p = (bits.float() * 0.99).to(dtype), p.detach().cpu()
    assert bool(((p == expected) | (p.isnan() & expected.isnan())).all())


@ways()
@pytest.mark.parametrize("theirs", [torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
def test_a_second_moment_for_each_element_is_torch(way, theirs, maximize):
    kinds = way.kinds if way.quick else {name: KINDS[name] for name in ("scalar", "elements", "rows of a transposed matrix")}
    params, twins = (make_params(kinds, device=way.device) for _ in range(2))
    options = dict(lr=3e-3, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1, maximize=maximize)
    layouts = {name: BlockLayout.per_parameter(kind.shape) for name, kind in kinds.items()}
    a = way.optimizer(params.items(), layouts, decoupled_weight_decay=theirs is torch.optim.AdamW, **options)
    b = theirs(twins.values(), foreach=way.options.get("foreach", False), **options)
    for step in range(20 if way.quick else 4):
        for some in (params, twins):
            give(some, make_grads(step, kinds))
        a.step(), b.step()
    way.check(a)
    for name, p in params.items():
        if way.to_the_bit:
            assert torch.equal(p, twins[name]), name
        torch.testing.assert_close(p, twins[name], rtol=1e-5, atol=1e-6)


@ways()
@pytest.mark.parametrize("options", [{}, {"decoupled_weight_decay": False, "maximize": True}], ids=["decoupled", "coupled-maximize"])
def test_large_tensors_are_cut_into_pieces(way, options):
    kinds = {name: kind for name, kind in large_kinds(*way.large).items() if way.quick or kind.numbers.max() < 60}
    beside = Beside.make(way, kinds, **options)
    for step in range(2 if way.quick else 1):
        beside.step(make_grads(step, kinds))


# ---- hard numbers


@ways()
@pytest.mark.parametrize(
    ("dtype", "size", "coupled"),
    [
        (torch.float32, 1.8e19, 0.0),  # whose square is hardly less than the largest float32
        (torch.float32, 1e18, 0.5),
        (torch.bfloat16, 1e19, 0.0),
        (torch.float64, 1e150, 0.5),
        (torch.float32, 1e-20, 0.0),  # whose square is denormal: a factor that kept all sums finite would make nothing of it
    ],
    ids=str,
)
def test_sums_of_squares_may_be_what_no_number_is_where_their_mean_is_one(way, dtype, size, coupled):
    """With eps=0, against exact steps of gradients divided by their size, which cancels."""
    if way in ON_GPU or (way is TRITON and GPU and dtype == torch.float64):
        pytest.skip("on a GPU only Triton's kernels know whether a sum has overflowed: torch would have to wait for it")
    kinds = {**KINDS, **large_kinds(*way.large)} if way.quick else {name: KINDS[name] for name in FEW if KINDS[name].numbers.max() < 4}
    kinds = {name: kind for name, kind in kinds.items() if kind.numbers.size >= 40}
    options = {**OPTIONS, "betas": (0.9, 0.5), "eps": 0.0, "weight_decay": coupled, "decoupled_weight_decay": False}
    params = make_params(kinds, dtype=dtype, device=way.device)
    optimizer = way.optimizer(params.items(), layouts_of(kinds), **options)
    expected = {name: exact.at_start(double(p), kinds[name].numbers) for name, p in params.items()}
    options["weight_decay"] = 0.0  # beside such gradients it is nothing
    for step in range(2):
        ones = {name: grad.sign() * (0.5 + torch.rand(grad.shape) / 2) for name, grad in make_grads(step, kinds, torch.float64).items()}
        give(params, {name: one * size for name, one in ones.items()})
        optimizer.step()
        for name, p in params.items():
            ones[name] = double(p.grad) / size
            expected[name] = exact.one_step(expected[name], ones[name], step + 1, kinds[name].numbers, options)
    way.check(optimizer)
    bound = {torch.float64: 1e-11, torch.bfloat16: 0.02}.get(dtype, 1e-5 if size > 1 else 1e-4)
    for name, p in params.items():
        assert_close(double(p), expected[name].p, bound * (1 + np.abs(expected[name].p)), name)


@ways()
def test_without_momentum_nothing_of_earlier_gradients_is_left(way):
    kinds = {name: KINDS[name] for name in ("rows", "whole", "columns", "elements")}
    params = make_params(kinds, device=way.device)
    optimizer = way.optimizer(params.items(), layouts_of(kinds), **{**OPTIONS, "betas": (0.0, 0.9)})
    for size in (1e8, 1.0):
        give(params, {name: torch.full(kind.shape, size) for name, kind in kinds.items()})
        optimizer.step()
    assert all(bool((optimizer.state[p]["exp_avg"] == 1).all()) for p in params.values())


SPOILT = [
    "rows",
    "heads",
    "columns",
    "elements",
    "heads of columns",
    "alternate dimensions, channels last",
    "very long rows",
    "gates that interleave",
]


@ways()
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_spoils_its_block_alone(way, bad):
    kinds = {name: KINDS[name] for name in SPOILT}
    params, twins = (make_params(kinds, device=way.device) for _ in range(2))
    a, b = (way.optimizer(some.items(), layouts_of(kinds), **OPTIONS) for some in (params, twins))
    at = {name: np.unravel_index(kind.numbers.size // 3, kind.shape) for name, kind in kinds.items()}
    for step in range(2 if way.quick else 1):
        grads = make_grads(step, kinds)
        give(twins, grads)
        for name, grad in grads.items():
            grad[at[name]] = bad
        give(params, grads)
        a.step(), b.step()
    way.check(a)
    for name, p in params.items():
        numbers = kinds[name].numbers
        assert not math.isfinite(p.detach()[at[name]]), name
        others = torch.from_numpy(numbers != numbers[at[name]])
        assert bool(others.any())
        assert torch.equal(p.detach().cpu()[others], twins[name].detach().cpu()[others]), name
        spoilt = ~a.state[p]["exp_avg_sq"].isfinite().cpu().flatten()
        assert spoilt.nonzero().flatten().tolist() == [numbers[at[name]]], name


@ways()
def test_zero_gradients_and_infinite_weights_are_no_reason_to_fail(way):
    kinds = way.kinds
    params = make_params(kinds, device=way.device)
    before = {name: p.detach().clone() for name, p in params.items()}
    optimizer = way.optimizer(params.items(), layouts_of(kinds), lr=1e-2, weight_decay=0.0)
    give(params, {name: torch.zeros(kind.shape) for name, kind in kinds.items()})
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in params.items())
    p = nn.Parameter(torch.tensor([math.inf, 1.0, 1.0, -math.inf], device=way.device))
    optimizer = way.optimizer([("p", p)], {"p": BlockLayout.whole((4,))}, lr=1e-2, weight_decay=0.1)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert p.tolist() == [math.inf, pytest.approx(0.989), pytest.approx(0.989), -math.inf]


# ---- groups and steps


@ways()
def test_groups_have_their_own_options_and_those_without_gradients_are_left(way):
    """What changes from step to step arrives: the options of groups, which parameters have gradients, where these lie."""
    kinds = way.kinds
    own = [{"lr": 0.1}, {"weight_decay": 0.5, "betas": (0.0, 0.9), "maximize": True}, {"decoupled_weight_decay": False, "eps": 1e-3}]
    options, parts = [{**OPTIONS, **more} for more in own], [[*kinds][i::3] for i in range(3)]
    params = make_params(kinds, device=way.device)
    groups = [{"params": [(name, params[name]) for name in part], **more} for part, more in zip(parts, own, strict=True)]
    optimizer = way.optimizer(groups, layouts_of(kinds), **OPTIONS)
    expected = {name: (0, exact.at_start(double(p), kinds[name].numbers)) for name, p in params.items()}
    for step in range(5):
        grads = {name: grad for i, (name, grad) in enumerate(make_grads(step, kinds).items()) if (i + step) % 4}
        options[0]["lr"] /= 2
        options[2]["betas"] = (0.5 + step / 10, 0.99)
        for group, now in zip(optimizer.param_groups, options, strict=True):
            group.update(lr=now["lr"], betas=now["betas"])
        give(params, grads)
        before = {name: p.detach().clone() for name, p in params.items()}
        optimizer.step()
        way.check(optimizer)
        for name, now in ((name, now) for part, now in zip(parts, options, strict=True) for name in part):
            if name in grads:
                t, moments = expected[name]
                expected[name] = t + 1, exact.one_step(moments, double(grads[name]), t + 1, kinds[name].numbers, now)
            else:
                assert torch.equal(params[name], before[name]), "without a gradient it is left"
    for name, (t, moments) in expected.items():
        assert int(optimizer.state[params[name]]["step"]) == t
        assert_near(double(params[name]), moments.p, name)


@ways()
def test_an_empty_tensor_is_counted_and_keeps_no_other_from_its_step(way):
    layouts = {
        "none": BlockLayout.whole((0, 3)),
        "of none": BlockLayout.each_line((3, 0)),
        "some": BlockLayout.each_line((7, 5)),
        "scalar": BlockLayout.whole(()),
    }
    params = {name: nn.Parameter(torch.ones(layout.shape, device=way.device)) for name, layout in layouts.items()}
    optimizer = way.optimizer(params.items(), layouts, lr=0.1, weight_decay=0.0)
    for _ in range(3):
        give(params, {name: torch.ones(layout.shape) for name, layout in layouts.items()})
        optimizer.step()
    assert all(int(optimizer.state[p]["step"]) == 3 for p in params.values())
    assert all(bool(v.isfinite().all()) for v in optimizer.second_moments().values())
    for name in ("some", "scalar"):
        torch.testing.assert_close(params[name].detach(), torch.full_like(params[name], 0.7))


@ways()
def test_a_step_gives_the_same_bits_again(way):
    kinds, runs = {**way.kinds, **large_kinds(*way.large)} if way.quick else way.kinds, []
    for _ in range(2):
        params = make_params(kinds, device=way.device)
        optimizer = way.optimizer(params.items(), layouts_of(kinds), **OPTIONS)
        give(params, make_grads(0, kinds))
        optimizer.step()
        runs.append([*params.values(), *(state["exp_avg_sq"] for state in optimizer.state.values())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# ---- memory


def transposed(g):
    return g.transpose(0, -1).contiguous().transpose(0, -1)


def with_gaps(g):
    wide = g.new_zeros(*g.shape, 2)
    wide[..., 0] = g
    return wide[..., 0]


def within_a_storage(g):
    return torch.cat([g.new_zeros(3), g.flatten()])[3:].view(g.shape)


def one_number_for_all(g):
    return g.flatten()[0].expand(g.shape)


@ways()
@pytest.mark.parametrize(
    "strides", [transposed, with_gaps, within_a_storage, one_number_for_all], ids=lambda f: f.__name__.replace("_", " ")
)
def test_gradients_of_other_strides_are_read_as_they_are(way, strides):
    kinds = {name: kind for name, kind in way.kinds.items() if len(kind.shape) > 1}
    params, twins = (make_params(kinds, device=way.device) for _ in range(2))
    a, b = (way.optimizer(some.items(), layouts_of(kinds), **OPTIONS) for some in (params, twins))
    for step in range(2 if way.quick else 1):
        given = {name: strides(grad.to(way.device)) for name, grad in make_grads(step, kinds).items()}
        give(twins, given)
        for name, p in params.items():
            p.grad = given[name]
        kept = {name: (grad.stride(), grad.clone()) for name, grad in given.items()}
        a.step(), b.step()
        for name, p in params.items():
            assert p.grad is given[name]
            assert (p.grad.stride(), True) == (kept[name][0], torch.equal(p.grad, kept[name][1])), "and left"
    way.check(a)
    for name, p in params.items():  # sums may be taken in the order of the gradient's memory
        torch.testing.assert_close(p, twins[name], rtol=2e-5, atol=2e-6)


@ways()
@pytest.mark.parametrize("what", ["exp_avg", "exp_avg_sq", "weights"])
def test_memory_in_another_order_from_some_step_on(way, what):
    """Moments as from a checkpoint of a run without channels_last; or a model that is made channels_last between two steps."""
    names = ["heads", "elements", "alternate dimensions", "experts"]
    beside = Beside.make(way, {name: KINDS[name] for name in (names if not way.quick else [*names, "output channels", "columns", "rows"])})
    for step in range(5 if way.quick else 2):
        if step == (3 if way.quick else 1):
            for p in beside.params.values():
                order = (0, 2, 3, 1) if p.ndim == 4 else tuple(reversed(range(p.ndim)))
                if what == "weights":
                    p.data = in_order(p.data, order)
                else:
                    beside.optimizer.state[p][what] = in_order(beside.optimizer.state[p][what], order)
        beside.step(make_grads(step, beside.kinds))


# ---- from one backend to another, and what one cannot do


@ways()
@pytest.mark.parametrize("other", [CPP, FOREACH, SLICES, TRITON], ids=lambda way: f"to {way.name}")
def test_state_is_taken_over_in_mid_run(way, other):
    skip_without(other)
    kinds = {
        name: KINDS[name] for name in ("scalar", "rows", "columns", "elements", "gates that interleave", "input channels, channels last")
    }
    params, state = make_params(kinds), None
    expected = {name: exact.at_start(double(p), kinds[name].numbers) for name, p in params.items()}
    for step, now in enumerate((way, other, way)):
        params = {name: nn.Parameter(in_order(p.detach().to(now.device), kinds[name].order)) for name, p in params.items()}
        optimizer = now.optimizer(params.items(), layouts_of(kinds), **OPTIONS)
        if state is not None:
            optimizer.load_state_dict(state)
        grads = make_grads(step, kinds)
        give(params, grads)
        optimizer.step()
        now.check(optimizer)
        state = optimizer.state_dict()
        expected = {name: exact.one_step(expected[name], double(grads[name]), step + 1, kinds[name].numbers, OPTIONS) for name in kinds}
    for name, p in params.items():
        assert_near(double(p), expected[name].p, name)
        assert_near(double(optimizer.state[p]["exp_avg"]), expected[name].m, name)


@ways(CPP, TRITON)
@pytest.mark.parametrize("case", HARD)
def test_what_it_cannot_do_is_refused_by_name_before_anything_changes(way, case):
    weights, reason, options = HARD[case]
    good, bad = nn.Parameter(torch.ones(3, device=way.device)), nn.Parameter(weights(way.device))
    layouts = {"good": BlockLayout.whole((3,)), "bad": BlockLayout.each_line(bad.shape)}
    optimizer = way.optimizer([("bad", bad), ("good", good)], layouts, **options)
    good.grad, bad.grad = torch.ones_like(good), torch.ones_like(bad)
    if case not in way.cannot:
        optimizer.step()
        way.check(optimizer)
        assert bool((good < 1).all())
        return
    with pytest.raises(RuntimeError, match=rf"parameter 'bad' of shape .* in one compiled loop because .*{reason}.*fused=None"):
        optimizer.step()
    assert bool((good == 1).all() and (bad == 1).all())
    assert not optimizer.state


def test_fused_and_foreach_exclude_each_other():
    with pytest.raises(ValueError, match="fused.*foreach"):
        AdamMini([nn.Parameter(torch.ones(3))], fused=True, foreach=True)


def test_the_table_has_all_backends():
    adams = [backend for backend in BACKENDS if not backend.orthogonal]  # the other's tests are test_orthogonal.py
    assert all(any(issubclass(way.backend, backend) for way in WAYS) for backend in adams)
