"""Factored layouts in the Triton kernels: what holds of these alone. Ordinary arithmetic is tested with the other backends'."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_adam_mini import AdamMini, BlockLayout
from lightning_adam_mini.optim.backends.readable import Readable
from lightning_adam_mini.optim.backends.triton import step as triton_step
from lightning_adam_mini.optim.backends.triton.plan import make_plan
from tests.optim.backends import exact
from tests.optim.backends.beside import OPTIONS, Beside, assert_close
from tests.optim.backends.table import (
    DEVICE,
    FACTORED,
    FEW,
    GPU,
    KINDS,
    TRITON,
    Way,
    crossed_kind,
    double,
    give,
    in_order,
    layouts_of,
    make_grads,
    make_params,
)

pytest.importorskip("triton", reason="Triton is not installed, so its kernels are not tested here")
pytestmark = [
    pytest.mark.usefixtures("small_pieces"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of NumPy in Triton's interpreter: of what lies outside of masks
]

_EXPERTS, _HEADS, _HEADS_BY_HAND = BlockLayout((3, 7, 18), dims=(2,), crossed=(1,)), "q:2x3|k:1x3|v:2x1", "a3 b3 c3 d1 e1"
ALL = {
    **FACTORED,
    "matrix": crossed_kind(BlockLayout.factored((21, 18)), (0,), (1,)),
    "matrix, transposed": crossed_kind(BlockLayout.factored((19, 37)), (0,), (1,), order=(1, 0)),
    "transposed convolution, channels last": crossed_kind(BlockLayout.factored((6, 5, 3, 2), 1, 0), (1,), (0,), order=(0, 2, 3, 1)),
    "depthwise convolution": crossed_kind(BlockLayout((12, 1, 3, 3), dims=(1, 2, 3), crossed=(0, 1)), (0,), (2, 3)),
    "depthwise convolution, channels last": crossed_kind(
        BlockLayout((12, 1, 3, 3), dims=(1, 2, 3), crossed=(0, 1)), (0,), (2, 3), order=(2, 3, 1, 0)
    ),
    "experts": crossed_kind(_EXPERTS, (0, 1), (0, 2), (0,)),
    "experts, each transposed": crossed_kind(_EXPERTS, (0, 1), (0, 2), (0,), order=(0, 2, 1)),
    "experts in turns": crossed_kind(_EXPERTS, (0, 1), (0, 2), (0,), order=(2, 1, 0)),
    "experts in the middle": crossed_kind(BlockLayout((7, 3, 18), dims=(2,), crossed=(0,)), (0, 1), (1, 2), (1,)),
    "heads": crossed_kind(BlockLayout((11, 17), (1,), 0, _HEADS, (0,)), (0,), (1,), (), _HEADS_BY_HAND),
    "heads, transposed": crossed_kind(BlockLayout((11, 17), (1,), 0, _HEADS, (0,)), (0,), (1,), (), _HEADS_BY_HAND, (1, 0)),
    "heads of columns": crossed_kind(BlockLayout((13, 11), (0,), 1, _HEADS, (1,)), (1,), (0,), (), _HEADS_BY_HAND),
    "heads of experts": crossed_kind(BlockLayout((3, 11, 8), (2,), 1, _HEADS, (1,)), (0, 1), (0, 2), (0,), _HEADS_BY_HAND),
}
SOME = {name: ALL[name] for name in ("matrix", "output and input channels, channels last", "experts", "heads")}
READABLE = Way("readable", Readable, {"fused": False}, (Readable,), DEVICE)


def rows_times_columns(step, kinds):
    """Gradients whose rows, columns and so on differ by powers of ten."""
    generator = torch.Generator().manual_seed(1000 + step)
    grads = {}
    for name, kind in kinds.items():
        grad = torch.randn(kind.shape, generator=generator)
        for d, length in enumerate(kind.shape):
            grad *= (10 ** torch.randn(length, generator=generator).mul(0.5)).view([-1 if i == d else 1 for i in range(grad.ndim)])
        grads[name] = grad
    return grads


def test_the_tensors_have_all_kinds_of_programs():
    sizes, seen = triton_step.SIZES, set()
    for kind in ALL.values():
        p = in_order(torch.empty(kind.shape), kind.order)
        plan = make_plan(kind.layout, p.stride(), p.device, sizes)
        seen |= {("lists", margin) for margin in plan.blocks[:, 0].tolist()} | {("lines", margin) for margin in plan.lines[:, 0].tolist()}
        seen |= {("swapped", plan.swapped), ("divisible", plan.divisible), ("columns", plan.columns), ("products", len(plan.means) > 1)}
        seen |= {("order", plan.order is None), ("numbers", plan.numbers is None), ("row numbers", plan.row_numbers is None)}
        seen |= {
            ("below", plan.tiles[0, 1].item() < p.numel() // plan.wide),
            ("right", plan.wide > plan.columns),
            ("turns", plan.apart > 1),
        }
    expected = {(what, margin) for what in ("lists", "lines") for margin in (0, 1)} | {("columns", 2), ("columns", 16)}
    flags = ("swapped", "divisible", "products", "order", "numbers", "row numbers", "below", "right", "turns")
    assert seen == expected | {(flag, value) for flag in flags for value in (False, True)}


@pytest.mark.parametrize("options", [{}, {"decoupled_weight_decay": False, "maximize": True, "betas": (0.8, 0.999)}], ids=["", "coupled"])
def test_any_order_of_memory(options):
    kinds = ALL if GPU or not options else SOME
    beside = Beside.make(TRITON, kinds, **options)
    for step in range(2):
        beside.step(rows_times_columns(step, kinds))


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float32, 1.8e19),  # whose square is hardly less than the largest float32
        (torch.bfloat16, 1e19),
        (torch.float64, 1e153),
        (torch.float32, 1e-20),  # whose square is denormal
    ],
    ids=str,
)
def test_sums_of_squares_may_be_what_no_number_is_where_their_mean_is_one(dtype, size):
    """With eps=0, against exact steps of gradients divided by their size, which cancels."""
    options = {**OPTIONS, "betas": (0.9, 0.5), "eps": 0.0, "weight_decay": 0.0}
    params = make_params(SOME, dtype=dtype, device=DEVICE)
    optimizer = TRITON.optimizer(params.items(), layouts_of(SOME), **options)
    expected = {name: exact.at_start(double(p), SOME[name].numbers) for name, p in params.items()}
    for t in (1, 2):
        ones = {name: grad.sign() * (0.5 + torch.rand(grad.shape) / 2) for name, grad in make_grads(t, SOME, torch.float64).items()}
        give(params, {name: one * size for name, one in ones.items()})
        optimizer.step()
        for name, p in params.items():
            expected[name] = exact.one_step(expected[name], double(p.grad) / size, t, SOME[name].numbers, options)
    TRITON.check(optimizer)
    bound = {torch.float64: 1e-11, torch.bfloat16: 0.02}.get(dtype, 1e-5 if size > 1 else 1e-4)
    for name, p in params.items():
        assert_close(double(p), expected[name].p, bound * (1 + abs(expected[name].p)), name)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e25])
def test_a_gradient_without_a_square_spoils_all_that_its_means_reach_and_no_more(bad):
    params, twins = (make_params(SOME, device=DEVICE) for _ in range(2))
    for some in (params, twins):
        grads = rows_times_columns(0, SOME)
        if some is params:
            for name in ("matrix", "experts", "output and input channels, channels last"):
                grads[name].view(-1)[grads[name].numel() // 2] = bad
        give(some, grads)
        TRITON.optimizer(some.items(), layouts_of(SOME), **OPTIONS).step()
    for name in ("matrix", "output and input channels, channels last"):
        assert bool(params[name].isnan().all()), name
    assert [bool(expert.isnan().all()) for expert in params["experts"]] == [False, True, False]
    assert torch.equal(params["experts"][::2], twins["experts"][::2])
    assert torch.equal(params["heads"], twins["heads"])


def test_an_expert_that_never_had_a_gradient_is_left_alone():
    kinds = {name: ALL[name] for name in ("experts", "experts, each transposed", "experts in turns")}
    beside = Beside.make(TRITON, kinds, weight_decay=0.0)
    before = {name: double(p) for name, p in beside.params.items()}
    for step in range(2):
        grads = rows_times_columns(step, kinds)
        for grad in grads.values():
            grad[1] = 0
        beside.step(grads)
    for name, p in beside.params.items():
        changed = double(p) != before[name]
        assert [bool(some) for some in changed.any(axis=(1, 2))] == [True, False, True], name


# ---- beside others, and again


def mixed(times=1):
    kinds = {**{name: KINDS[name] for name in FEW if KINDS[name].numbers.max() < 10}, **SOME}
    return {f"{i} {name}": kind for i in range(times) for name, kind in kinds.items()}


def test_three_times_as_many_tensors_are_no_more_launches(launched):
    counts = []
    for times in (1, 3):
        kinds = mixed(times)
        params = make_params(kinds, device=DEVICE)
        optimizer = TRITON.optimizer(params.items(), layouts_of(kinds))
        give(params, make_grads(0, kinds))
        launched.clear()
        optimizer.step()
        counts.append(list(launched))
    assert counts[0] == counts[1]
    assert {*counts[0]} == {"prepare", "step_blocks", "step_pieces", "finish", "step_tiles", "finish_lines", "average"}
    assert len(counts[0]) <= 14


def test_a_step_gives_the_same_bits_again_whatever_else_is_stepped():
    def bits(others):
        kinds = {**others, **SOME}
        params = make_params(SOME, device=DEVICE) | make_params(others, device=DEVICE)
        optimizer = TRITON.optimizer([(name, params[name]) for name in kinds], layouts_of(kinds), **OPTIONS)
        give(params, rows_times_columns(0, SOME) | make_grads(0, others))
        optimizer.step()
        state = optimizer.state
        return [t for name in SOME for t in (params[name], state[params[name]]["exp_avg_sq"], state[params[name]]["exp_avg_sq_col"])]

    alone, again, beside_others = bits({}), bits({}), bits({"another": ALL["heads of columns"], "whole": KINDS["whole"]})
    for some in zip(alone, again, beside_others, strict=True):
        assert torch.equal(some[0], some[1])
        assert torch.equal(some[0], some[2])


def test_memory_in_another_order_from_some_step_on():
    kinds = {name: ALL[name] for name in ("output and input channels", "experts", "matrix")}
    beside = Beside.make(TRITON, kinds)
    for step in range(2):
        if step:
            for p in beside.params.values():
                p.data = in_order(p.data, {2: (1, 0), 3: (0, 2, 1), 4: (0, 2, 3, 1)}[p.ndim])
        beside.step(rows_times_columns(step, kinds))


def test_state_is_taken_over_from_the_readable_step_and_back():
    params, state = make_params(SOME, device=DEVICE), None
    for step, way in enumerate((TRITON, READABLE, TRITON)):
        optimizer = way.optimizer(params.items(), layouts_of(SOME), **OPTIONS)
        if state is not None:
            optimizer.load_state_dict(state)
        beside = Beside(optimizer, params, SOME, OPTIONS, way)
        beside.t = step
        beside.step(rows_times_columns(step, SOME))
        state = optimizer.state_dict()


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_a_step_waits_for_nothing_and_a_graph_can_hold_it():
    kinds = mixed()
    params, twins = (make_params(kinds, device=DEVICE) for _ in range(2))
    a, b = (AdamMini(some.items(), lr=torch.tensor(1e-2, device=DEVICE), layouts=layouts_of(kinds)) for some in (params, twins))
    for some in (params, twins):
        give(some, make_grads(0, kinds))
    a.step(), b.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        a.step(), b.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        a.step()
    for _ in range(3):
        for name, p in params.items():
            p.grad.normal_()
            twins[name].grad.copy_(p.grad)
        graph.replay()
        b.step()
    for name, p in params.items():
        torch.testing.assert_close(p, twins[name], rtol=0, atol=0)
