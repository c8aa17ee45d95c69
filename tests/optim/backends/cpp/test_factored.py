"""Factored layouts in the compiled loop, against the step written out in float64, block by block as worked out by hand."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from lightning_adam_mini import BlockLayout
from lightning_adam_mini.optim.backends.cpp.build import load_kernel
from tests.optim.backends import exact
from tests.optim.backends.exact import block_numbers, labels
from tests.optim.backends.table import CPP, SLICES, double, in_order

pytestmark = pytest.mark.skipif(isinstance(load_kernel(), str), reason=f"no compiled loop here: {load_kernel()}")

OPTIONS: dict[str, Any] = dict(lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, decoupled_weight_decay=True, maximize=False)
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
PAIRS = [(F32, F32), (F32, BF16), (F64, F64), (BF16, F32), (BF16, BF16), (F16, F32), (F16, BF16), (F16, F16)]
EPS = {dtype: torch.finfo(dtype).eps for dtype in (F32, F64, BF16, F16)}


class Kind(NamedTuple):
    """A tensor: the block of each element in either mean and in the one that both average to, and its order of memory."""

    layout: BlockLayout
    first: np.ndarray
    second: np.ndarray
    both: np.ndarray
    order: tuple[int, ...] | None


def kind(layout, first, second, lines=None, order=None):
    """From the dimensions that each mean keeps."""
    assert layout.is_factored
    names = None if lines is None else labels(lines)
    common = [d for d in first if d in second]
    numbers = [block_numbers(layout.shape, kept, layout.axis, names) for kept in (first, second, common)]
    return Kind(layout, *numbers, order)


def heads(shape, lines, axis):
    return BlockLayout(shape, dims=(1 - axis,), axis=axis, lines=lines, crossed=(axis,))


FACTORED = BlockLayout.factored
EXPERTS = BlockLayout((4, 30, 24), dims=(2,), crossed=(1,))
MANY_EXPERTS = BlockLayout((4, 300, 200), dims=(2,), crossed=(1,))
PLACES = BlockLayout((32, 24, 3, 3), dims=(1,), crossed=(0,))
IMAGE = (0, 2, 3, 1)
HEADS, HEADS_BY_HAND = heads((84, 50), "q:4x9|k:4x9|v:12x1", 0), "a9 b9 c9 d9 e9 f9 g9 h9 i1 j1 k1 l1 m1 n1 o1 p1 q1 r1 s1 t1"
KINDS = {
    "matrix": kind(FACTORED((37, 53)), (0,), (1,)),
    "matrix of few columns": kind(FACTORED((700, 3)), (0,), (1,)),
    "matrix of few rows": kind(FACTORED((3, 5000)), (0,), (1,)),
    "transposed matrix": kind(FACTORED((37, 53)), (0,), (1,), order=(1, 0)),
    "large matrix": kind(FACTORED((401, 333)), (0,), (1,)),
    "large transposed matrix": kind(FACTORED((401, 333)), (0,), (1,), order=(1, 0)),
    "convolution": kind(FACTORED((8, 6, 3, 3)), (0,), (1,)),
    "convolution, channels last": kind(FACTORED((8, 6, 3, 3)), (0,), (1,), order=IMAGE),
    "large convolution": kind(FACTORED((96, 160, 3, 3)), (0,), (1,)),
    "large convolution, channels last": kind(FACTORED((96, 160, 3, 3)), (0,), (1,), order=IMAGE),
    "convolution, permuted": kind(FACTORED((8, 6, 3, 3)), (0,), (1,), order=(1, 2, 0, 3)),
    "depthwise": kind(BlockLayout((96, 1, 7, 7), dims=(1, 2, 3), crossed=(0,)), (0,), (2, 3)),
    "each place of a kernel": kind(PLACES, (0, 2, 3), (1, 2, 3)),
    "each place of a kernel, channels last": kind(PLACES, (0, 2, 3), (1, 2, 3), order=IMAGE),
    "experts": kind(EXPERTS, (0, 1), (0, 2)),
    "experts, innermost": kind(EXPERTS, (0, 1), (0, 2), order=(1, 2, 0)),
    "experts, in the middle": kind(EXPERTS, (0, 1), (0, 2), order=(1, 0, 2)),
    "many experts": kind(MANY_EXPERTS, (0, 1), (0, 2)),
    "many experts, innermost": kind(MANY_EXPERTS, (0, 1), (0, 2), order=(1, 2, 0)),
    "heads": kind(HEADS, (0,), (1,), HEADS_BY_HAND),
    "transposed heads": kind(HEADS, (0,), (1,), HEADS_BY_HAND, order=(1, 0)),
    "heads that interleave": kind(heads((96, 50), "4*(q:1x12|k:12)", 0), (0,), (1,), "a9 a3 k9 k3 b9 b3 k9 k3 c9 c3 k9 k3 d9 d3 k9 k3"),
    "heads of columns": kind(heads((50, 28), "q:2x8|v:12x1", 1), (1,), (0,), "a8 b8 c1 d1 e1 f1 g1 h1 i1 j1 k1 l1 m1 n1"),
}
LARGE = {name: kind for name, kind in KINDS.items() if "large" in name or "many" in name}


def mean_of(values, numbers):
    return np.bincount(numbers.ravel(), values.ravel()) / np.bincount(numbers.ravel())


def one_step(kind, p, m, r, c, g, t, options):
    """Weights, momentum and both means after a step; and the update in learning rates before it is cut off."""
    (beta1, beta2), lr, decay = options["betas"], options["lr"], options["weight_decay"]
    g = -g if options["maximize"] else g
    with np.errstate(all="ignore"):
        if options["decoupled_weight_decay"]:
            p = p * (1 - lr * decay)
        else:
            g = g + decay * p
        m = beta1 * m + (1 - beta1) * g
        r = beta2 * r + (1 - beta2) * mean_of(g * g, kind.first)
        c = beta2 * c + (1 - beta2) * mean_of(g * g, kind.second)
        both = mean_of(c[kind.second], kind.both)[kind.both]
        root = np.sqrt(r)[kind.first] * np.sqrt(c)[kind.second] / np.sqrt(both)
        root[both == 0] = 0
        update = m / (1 - beta1**t) / (root / np.sqrt(1 - beta2**t) + options["eps"])
        most = max(1, (1 - beta1) / np.sqrt(1 - beta2))
        p = p - lr * np.clip(update, -most, most)
    return p, m, r, c, update


def rounding(size, dtype, eps):
    """What is lost where numbers that were computed with this eps are kept in a dtype."""
    return EPS[dtype] * (np.abs(size) + torch.finfo(dtype).smallest_normal) if EPS[dtype] > eps else 0 * size


class Run:
    """An optimizer with one parameter, checked step by step from where it was."""

    def __init__(self, kind, dtype=F32, way=CPP, seed=0, **options):
        self.kind, self.generator, self.t = kind, torch.Generator().manual_seed(seed), 0
        self.p = torch.nn.Parameter(in_order(self.random().to(dtype), kind.order))
        self.way, self.options = way, {**OPTIONS, **options}
        self.optimizer = way.optimizer([("p", self.p)], {"p": kind.layout}, **self.options)

    def random(self):
        return torch.randn(self.kind.layout.shape, generator=self.generator)

    def step(self, g=None):
        g = self.random() * 10 ** torch.randn((), generator=self.generator) if g is None else g
        self.p.grad = in_order(g.to(self.p.dtype), self.kind.order)
        self.optimizer.step()
        self.way.check(self.optimizer)
        self.t += 1

    def moments(self):
        state = self.optimizer.state[self.p]
        if not state:
            return (double(self.p), np.zeros(self.p.shape), *(np.zeros(margin.num_blocks) for margin in self.kind.layout.margins))
        m = double(state["exp_avg"])
        if "exp_avg_scale" in state:
            m = exact.decoded(m, double(state["exp_avg_scale"]), self.lengths())
        return double(self.p), m, double(state["exp_avg_sq"]).ravel(), double(state["exp_avg_sq_col"]).ravel()

    def lengths(self):
        return exact.run_lengths(self.p.numel(), exact.row_by_hand(self.p.shape))

    def checked_step(self):
        before = self.moments()
        self.step()
        got, expected = self.moments(), one_step(self.kind, *before, double(self.p.grad), self.t, self.options)
        eps = EPS[F64 if self.p.dtype == F64 else F32]
        sums = 64 if eps == EPS[F32] else 1000  # in float64 the sums here are no more exact
        size_g = np.abs(double(self.p.grad)) + (0 if self.options["decoupled_weight_decay"] else 0.1 * np.abs(before[0]))
        for mean, numbers, wanted in zip(got[2:], (self.kind.first, self.kind.second), expected[2:4], strict=True):
            np.testing.assert_array_less(np.abs(mean - wanted), sums * eps * (wanted + mean_of(size_g**2, numbers)))
        in_m = 4 * eps * (np.abs(before[1]) + size_g)
        change = np.abs(got[0] - before[0]) + 0.01 * np.abs(in_m / np.where(expected[1] == 0, 1, expected[1]))
        bound = sums * eps * (np.abs(before[0]) + change) + rounding(expected[0], self.p.dtype, eps) + 1e-30
        np.testing.assert_array_less(np.abs(got[0] - expected[0]), bound)
        if "exp_avg_scale" in self.optimizer.state[self.p]:
            state = self.optimizer.state[self.p]
            wrong = exact.wrong_codes(expected[1], in_m, double(state["exp_avg"]), double(state["exp_avg_scale"]), self.lengths())
            assert not wrong.any(), f"{wrong.sum()} of {wrong.size} codes"
        else:
            in_m = in_m + rounding(expected[1], self.optimizer.state[self.p]["exp_avg"].dtype, eps) + 1e-30
            np.testing.assert_array_less(np.abs(got[1] - expected[1]), in_m)


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_three_steps_against_float64(name, dtypes):
    if dtypes != (F32, F32) and name in LARGE and name != "large matrix":
        pytest.skip("as in float32")
    run = Run(KINDS[name], dtypes[0], momentum_dtype=dtypes[1])
    for _ in range(3):
        run.checked_step()


@pytest.mark.parametrize("name", ["matrix", "large convolution", "heads", "experts", "each place of a kernel"])
@pytest.mark.parametrize("options", [dict(decoupled_weight_decay=False), dict(maximize=True, weight_decay=0.0)], ids=str)
def test_other_options(name, options):
    run = Run(KINDS[name], **options)
    for _ in range(3):
        run.checked_step()


ORDERED = [name for name, kind in KINDS.items() if kind.order in (None, IMAGE) and kind.first.size >= 4096]


@pytest.mark.parametrize("dtype", [F32, BF16, F64])
@pytest.mark.parametrize("name", ORDERED)
def test_momentum_in_8_bits(name, dtype):
    run = Run(KINDS[name], dtype, momentum_dtype="8bit")
    for _ in range(3):
        run.checked_step()
    assert run.optimizer.state[run.p]["exp_avg"].dtype == torch.int8


def apart(a, b):
    return float((a.p != b.p).double().mean())


@pytest.mark.parametrize("momentum_dtype", [F32, "8bit"])
@pytest.mark.parametrize("name", ["matrix", "large matrix", "convolution, channels last", "experts"])
def test_weights_are_rounded_at_random_with_the_same_bits_as_in_slices(name, momentum_dtype):
    options = dict(momentum_dtype=momentum_dtype, stochastic_rounding=True)
    ours, theirs, nearest = Run(KINDS[name], BF16, **options), Run(KINDS[name], BF16, SLICES, **options), Run(KINDS[name], BF16)
    for run in (ours, theirs, nearest):
        run.step()
    assert apart(ours, theirs) < 0.01  # where the two are on either side of a random number
    assert apart(ours, nearest) > 0.1


@pytest.mark.parametrize("options", [dict(), dict(momentum_dtype="8bit"), dict(decoupled_weight_decay=False)], ids=str)
def test_the_number_of_threads_changes_no_bit(options):
    threads, runs = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            kinds = [kind for kind in LARGE.values() if kind.order in (None, IMAGE) or "momentum_dtype" not in options]
            generator = torch.Generator().manual_seed(0)
            params = [torch.nn.Parameter(in_order(torch.randn(kind.layout.shape, generator=generator), kind.order)) for kind in kinds]
            named = [(str(i), p) for i, p in enumerate(params)]
            optimizer = CPP.optimizer(named, {str(i): kind.layout for i, kind in enumerate(kinds)}, **{**OPTIONS, **options})
            for _ in range(3):
                for p in params:
                    p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
                optimizer.step()
            runs.append([*params, *(t for p in params for t in optimizer.state[p].values())])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for some in runs[1:] for one, other in zip(runs[0], some, strict=True))


@pytest.mark.parametrize("name", ["matrix", "large matrix", "convolution", "experts", "experts, innermost"])
def test_a_row_that_never_had_a_gradient_is_left_alone(name):
    run = Run(KINDS[name], weight_decay=0.0)
    before = double(run.p)
    for _ in range(3):
        g = run.random()
        g[1] = 0
        run.step(g)
    after = double(run.p)
    assert (after[1] == before[1]).all()
    assert (np.delete(after, 1, 0) != np.delete(before, 1, 0)).mean() > 0.99


@pytest.mark.parametrize("name", ["matrix", "large transposed matrix", "experts"])
def test_without_any_gradient_it_is_adamw(name):
    run = Run(KINDS[name], weight_decay=0.0)
    before = run.p.detach().clone()
    run.step(torch.zeros(run.p.shape))
    assert torch.equal(run.p, before)
    run = Run(KINDS[name], eps=0.0)
    run.step(torch.zeros(run.p.shape))
    assert run.p.isnan().all()  # 0 / 0


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["matrix", "large matrix", "transposed matrix", "convolution", "depthwise"])
def test_what_is_not_finite_is_loud(name, value):
    """All is NaN. An infinite mean would else make a second moment of 0 somewhere, or freeze weights in silence."""
    run = Run(KINDS[name])
    run.step()
    g = run.random()
    g.view(-1)[3] = value
    run.step(g)
    assert run.p.isnan().all()


def test_an_expert_whose_gradient_is_not_finite_leaves_the_others_alone():
    run = Run(KINDS["experts"])
    g = run.random()
    g[2, 3, 4] = np.inf
    run.step(g)
    assert run.p[2].isnan().all()
    assert run.p[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("name", ["matrix", "large matrix", "large transposed matrix", "large convolution", "experts, innermost"])
def test_gradients_whose_squares_overflow_in_sums(name):
    """The first step has the size of the learning rate, as with AdamW and eps = 0."""
    run = Run(KINDS[name], weight_decay=0.0, eps=0.0, betas=(0.9, 0.999))
    with torch.no_grad():
        run.p.zero_()
    sign = run.random().sign()
    run.step(sign * 3e19)
    assert torch.allclose(run.p, -0.01 * sign, rtol=1e-5)


@pytest.mark.parametrize("name", ["matrix", "large matrix", "transposed matrix"])
def test_a_column_that_grows_moves_no_weight_by_more_than_the_bound_of_adam(name):
    run = Run(KINDS[name], weight_decay=0.0, eps=0.0, betas=(0.9, 0.999))
    most, largest = 0.1 / 0.001**0.5, 0.0
    for t in range(8):
        before, g = run.moments(), run.random()
        if t == 6:  # in all rows but one, which is taken to have been small all along
            g[:, 0] *= 1e4
            g[0, 0] = 0
        run.step(g)
        after = run.moments()
        updates = one_step(run.kind, *before, double(run.p.grad), run.t, run.options)[4]
        largest = max(largest, np.abs(updates).max())
        assert np.abs(after[0] - before[0]).max() <= 0.01 * most * (1 + 1e-4) + 1e-6
    assert largest > 10 * most, "no bound, no test"


def test_short_tables():
    """Of what most models have, no table is as long as a parameter."""
    from lightning_adam_mini.optim.segments import find_segments

    for name in (
        "large convolution",
        "large convolution, channels last",
        "large transposed matrix",
        "many experts",
        "each place of a kernel",
    ):
        kind = KINDS[name]
        strides = in_order(torch.empty(kind.layout.shape), kind.order).stride()
        segments = find_segments(kind.layout, strides, torch.device("cpu"))
        assert segments is not None
        tables = [table for table in segments if isinstance(table, torch.Tensor)]
        assert sum(map(torch.numel, tables)) <= max(4 * kind.layout.num_blocks, kind.layout.shape[0] + 1440 + 160)
