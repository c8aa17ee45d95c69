"""Momentum in 8 bits and bfloat16 weights that are rounded at random, in an optimizer."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, BlockLayout, partition_model, to_adamw_state_dict
from lightning_adam_mini.optim import state_bytes
from lightning_adam_mini.optim.codecs import EightBit
from tests.optim.backends import exact
from tests.optim.backends.beside import Beside
from tests.optim.backends.table import CPP, LOOP, Kind, in_order, kind, make_grads, ways

SHAPE = (31, 600)  # runs of 256 do not fit into its rows
ROWS = BlockLayout.each_line(SHAPE)
KINDS = {
    "elements": kind(BlockLayout.per_parameter(SHAPE), (0, 1)),
    "rows": kind(ROWS, (0,)),
    "columns": kind(BlockLayout.each_line(SHAPE, axis=1), (1,)),
    "heads": kind(BlockLayout.grouped(SHAPE, "q:2x15|k:1x1"), (0,), "a15 b15 c1"),
    "heads of columns": kind(BlockLayout.grouped(SHAPE, "q:3x130|k:1x210", axis=1), (1,), "a130 b130 c130 d210"),
    "whole": kind(BlockLayout.whole(SHAPE), ()),
    "images": kind(BlockLayout((16, 32, 3, 5), dims=(1, 2, 3)), (0,)),
    "images, channels last": kind(BlockLayout((16, 32, 3, 5), dims=(1, 2, 3)), (0,), order=(0, 2, 3, 1)),
    "input channels, channels last": kind(BlockLayout((16, 32, 3, 5), dims=(0, 2, 3)), (1,), order=(0, 2, 3, 1)),
    "narrow": kind(BlockLayout.each_line((2000, 3)), (0,)),
}
BOTH = ways(CPP, LOOP)  # the compiled loop, and slices where it is not asked for


class Codes(Beside):
    """With momentum in codes, which slices step in the place of the readable arithmetic."""

    @classmethod
    def make(cls, way, kinds, **options):
        beside = super().make(way, kinds, momentum_dtype="8bit", **options)
        if way is LOOP:
            beside.way = None
        return beside


def adam_mini(layout=ROWS, dtype=torch.float32, seed=0, **options):
    p = nn.Parameter(torch.randn(layout.shape, generator=torch.Generator().manual_seed(seed)).to(dtype))
    return AdamMini([("w", p)], layouts={"w": layout}, **{"lr": 1e-2, "betas": (0.9, 0.95), **options}), p


def run(optimizer, p, steps, first=0):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(1000 + step)
        p.grad = (torch.randn(p.shape, generator=generator, dtype=torch.float64) + 0.3 * p.detach().double()).to(p.dtype)
        optimizer.step()


def momentum(state):
    """What is kept, in float32."""
    if "exp_avg_scale" not in state:
        return state["exp_avg"].float()
    return EightBit(tuple(state["exp_avg"].shape)).decode({"": state["exp_avg"], "_scale": state["exp_avg_scale"]}, torch.float32)


def reloaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---- the step


@BOTH
@pytest.mark.parametrize(
    "options", [{}, {"decoupled_weight_decay": False, "maximize": True}, {"lr": torch.tensor(1e-2, dtype=torch.float64)}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_in_8_bits_is_exact_but_for_the_codes(way, options, dtype):
    beside = Codes.make(way, KINDS, dtype=dtype, **options)
    for step in range(3):
        beside.step(make_grads(step, KINDS, dtype))
    assert all(state["exp_avg"].dtype == torch.int8 for state in beside.optimizer.state.values())


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_with_8_bit_momentum(way, dtype):
    kinds = {name: KINDS[name] for name in ("rows", "columns", "elements", "images, channels last")}
    beside = Codes.make(way, kinds, dtype=dtype)
    for step in range(3):
        beside.step(make_grads(step, kinds, dtype, powers=0.5))


SHAPES = [(4096,), (1, 5000), (2, 70_001), (1000, 147), (3, 70_000), (64, 32, 3, 3), (2, 2, 2, 2, 300), (50_000, 3), (600, 64), (140_001,)]


@BOTH
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_shapes_that_are_cut_into_pieces(way, shape):
    """In rows and, where there is but one, in runs of it."""
    kinds = {
        "whole": kind(BlockLayout.whole(shape), ()),
        "rows": kind(BlockLayout.each_line(shape), (0,)),
        "elements": kind(BlockLayout.per_parameter(shape), tuple(range(len(shape)))),
        **({"columns": kind(BlockLayout.each_line(shape, axis=1), (1,))} if len(shape) > 1 else {}),
    }
    beside = Codes.make(way, kinds)
    for step in range(2):
        beside.step(make_grads(step, kinds))


@BOTH
@pytest.mark.parametrize("order", [(0, 2, 3, 1), (0, 3, 1, 2), (3, 2, 1, 0)], ids=str)
def test_weights_in_any_order_of_memory(way, order):
    """Codes have the order of memory of the weights, and runs that of their indices: a checkpoint fits weights in any order."""
    if way is CPP and order[0]:
        pytest.skip("which it refuses")
    layout = BlockLayout.each_line((16, 32, 3, 5))
    kinds = {"p": Kind(layout, exact.block_numbers(layout.shape, (0,)), order)}
    turned, plain = Codes.make(way, kinds), Codes.make(way, {"p": kinds["p"]._replace(order=None)})
    for step in range(3):
        for one in (turned, plain):
            one.step(make_grads(step, kinds))
    p = turned.params["p"]
    torch.testing.assert_close(p, plain.params["p"], rtol=1e-5, atol=1e-6)
    assert p.stride() == in_order(torch.zeros(layout.shape), order).stride()
    codes = turned.optimizer.state[p]["exp_avg"], plain.optimizer.state[plain.params["p"]]["exp_avg"]
    assert int((codes[0].int() - codes[1].int()).abs().max()) <= 1


def test_a_step_has_no_wide_copy_of_the_momentum():
    """Of the tensors that one step makes, none has half as many elements as the parameter."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            known = {t.untyped_storage().data_ptr() for t in (p, p.grad, *optimizer.state[p].values())}
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in known:
                self.elements = max(self.elements, out.untyped_storage().nbytes() // out.element_size())
            return out

    optimizer, p = adam_mini(BlockLayout.each_line((2048, 512)), momentum_dtype="8bit", weight_decay=0.0, fused=False)
    run(optimizer, p, 1)
    with Largest() as largest:
        optimizer.step()
    assert 0 < largest.elements < p.numel() / 2


def test_small_tensors_keep_float32_and_all_is_about_a_byte_a_parameter():
    shapes = {"embedding": (5003, 96), "matrix": (384, 96), "bias": (384,), "norm": (96,)}
    params = {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    layouts = {name: BlockLayout.each_line(shape) if len(shape) > 1 else BlockLayout.whole(shape) for name, shape in shapes.items()}
    optimizer = AdamMini(params.items(), layouts=layouts, momentum_dtype="8bit")
    for p in params.values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert {name: optimizer.state[p]["exp_avg"].dtype for name, p in params.items()} == {
        "embedding": torch.int8,
        "matrix": torch.int8,
        "bias": torch.float32,
        "norm": torch.float32,
    }
    n = sum(math.prod(shape) for shape in shapes.values())
    rows = shapes["embedding"][0] + shapes["matrix"][0]
    # A byte an element, a scale for each row of 96 (which is one run), and second moments.
    assert state_bytes(optimizer) == n + 3 * (384 + 96) + 4 * rows + 4 * (rows + 2) + 4 * 4


@pytest.mark.parametrize(("momentum_dtype", "size"), [(torch.bfloat16, 2), (torch.float32, 4), (None, 4)], ids=str)
def test_bytes_and_a_copy_by_way_of_a_checkpoint(momentum_dtype, size):
    optimizer, p = adam_mini(momentum_dtype=momentum_dtype)
    run(optimizer, p, 1)
    assert state_bytes(optimizer) == size * math.prod(SHAPE) + 4 * 31 + 4
    again, q = adam_mini(momentum_dtype=momentum_dtype)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[q]["exp_avg"].dtype == optimizer.state[p]["exp_avg"].dtype
    assert torch.equal(again.state[q]["exp_avg"], optimizer.state[p]["exp_avg"])


@BOTH
def test_tokens_that_hardly_come_keep_their_momentum_beside_some_that_come_often(way):
    """The gradients of an embedding's rows differ a thousandfold: where rows shared a scale, the small ones would be 0."""
    shape = (500, 64)
    optimizer, p = adam_mini(BlockLayout.each_line(shape), momentum_dtype="8bit", **way.options)
    generator = torch.Generator().manual_seed(0)
    sizes = 10.0 ** (3 * torch.rand(500, 1, generator=generator) - 3)
    expected = torch.zeros(shape)
    for _ in range(10):
        p.grad = torch.randn(shape, generator=generator) * sizes
        expected.lerp_(p.grad, 0.1)
        optimizer.step()
    errors = (momentum(optimizer.state[p]) - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(errors.max()) < 0.04


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_spoils_its_block_and_run_alone(way, bad):
    optimizer, p = adam_mini(momentum_dtype="8bit", **way.options)
    run(optimizer, p, 1)
    p.grad[20, 300] = bad
    optimizer.step()
    finite = p.isfinite()
    assert not bool(finite[20, 300])
    assert bool(finite[:20].all() and finite[21:].all())
    scales = optimizer.state[p]["exp_avg_scale"].isfinite()
    assert (~scales).nonzero().tolist() == [[20, 1]]


def test_mistakes_are_told():
    _, p = adam_mini()
    for wrong in ("8-bit", "int8", torch.int8):
        with pytest.raises(ValueError, match="Invalid momentum_dtype value: .* or '8bit'"):
            AdamMini([p], layouts={}, momentum_dtype=wrong)


# ---- checkpoints


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_in_8_bits_is_exact_also_by_way_of_adamw(way, dtype):
    options = dict(dtype=dtype, momentum_dtype="8bit", stochastic_rounding=True, **way.options)
    whole, p = adam_mini(**options)
    run(whole, p, 6)
    first, q = adam_mini(**options)
    run(first, q, 3)
    for state in (first.state_dict(), to_adamw_state_dict(first.state_dict())):
        second, r = adam_mini(**options)
        second.load_state_dict(reloaded(state))
        with torch.no_grad():
            r.copy_(q)
        run(second, r, 3, first=3)
        assert torch.equal(r, p)
        assert all(torch.equal(second.state[r][k], v) for k, v in whole.state[p].items())


def test_copies_and_pickles_go_on_alike():
    optimizer, p = adam_mini(momentum_dtype="8bit")
    run(optimizer, p, 2)
    twin = copy.deepcopy(optimizer)
    (q,) = twin.param_groups[0]["params"]
    run(optimizer, p, 2, first=2), run(twin, q, 2, first=2)
    assert torch.equal(p, q)
    assert torch.equal(optimizer.state[p]["exp_avg"], twin.state[q]["exp_avg"])


DTYPES = [None, torch.float32, torch.bfloat16, "8bit"]


@pytest.mark.parametrize("saved", DTYPES, ids=str)
@pytest.mark.parametrize("present", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_momentum_of_any_dtype_loads_into_any(saved, present, dtype):
    before, p = adam_mini(dtype=dtype, momentum_dtype=saved)
    run(before, p, 3)
    after, q = adam_mini(dtype=dtype, momentum_dtype=present)
    after.load_state_dict(reloaded(before.state_dict()))
    expected, got = momentum(before.state[p]), momentum(after.state[q])
    if saved == present or (saved, present) == (torch.bfloat16, torch.float32):
        assert torch.equal(got, expected)
    else:
        assert 0 < float((got - expected).norm()) <= 0.012 * float(expected.norm()) or torch.equal(got, expected)
    kept = dtype if present is None else torch.int8 if present == "8bit" else present
    assert after.state[q]["exp_avg"].dtype == kept
    assert ("exp_avg_scale" in after.state[q]) == (present == "8bit")
    run(after, q, 1)


def test_adamw_to_8_bits_and_back():
    q = nn.Parameter(torch.randn(SHAPE))
    theirs = torch.optim.AdamW([q])
    run(theirs, q, 3)
    ours, p = adam_mini(BlockLayout.per_parameter(SHAPE), momentum_dtype="8bit")
    ours.load_state_dict(reloaded(theirs.state_dict()))
    lengths = exact.run_lengths(math.prod(SHAPE), 600)
    m = theirs.state[q]["exp_avg"]
    assert not exact.wrong_codes(m, np.zeros(SHAPE), ours.state[p]["exp_avg"], ours.state[p]["exp_avg_scale"], lengths).any()
    run(ours, p, 2)

    state = reloaded(to_adamw_state_dict(ours.state_dict()))
    again = torch.optim.AdamW([q])
    again.load_state_dict(state)
    assert set(again.state[q]) == {"step", "exp_avg", "exp_avg_sq"}
    assert again.state[q]["exp_avg"].dtype == torch.float32
    assert torch.equal(again.state[q]["exp_avg"], momentum(ours.state[p]))
    run(again, q, 2)


@pytest.mark.parametrize("shape", [SHAPE, (16, 32, 3, 5), (2000, 3)], ids=str)
def test_a_checkpoint_of_an_earlier_version_goes_on(shape):
    """Its runs of 256 go on over the ends of rows, and its scales have one dimension."""
    layout = BlockLayout.each_line(shape)
    before, p = adam_mini(layout)
    run(before, p, 3)
    state, numel = reloaded(before.state_dict()), p.numel()
    m = before.state[p]["exp_avg"].double().numpy().ravel()
    lengths = exact.run_lengths(numel, numel)
    scales = np.maximum.reduceat(np.abs(m), np.cumsum(lengths) - lengths)
    codes = np.sign(m) * np.round(127 * np.sqrt(np.abs(m) / np.repeat(scales, lengths)))
    state["state"][0]["exp_avg"] = torch.from_numpy(codes).to(torch.int8).view(layout.shape)
    state["state"][0]["exp_avg_scale"] = torch.from_numpy(scales).float()
    after, q = adam_mini(layout, momentum_dtype="8bit")
    after.load_state_dict(state)
    with torch.no_grad():
        q.copy_(p)
    assert after.state[q]["exp_avg_scale"].shape == EightBit(layout.shape).fields["_scale"].shape
    assert float((momentum(after.state[q]) - before.state[p]["exp_avg"]).norm() / before.state[p]["exp_avg"].norm()) < 0.02
    run(before, p, 1, first=3), run(after, q, 1, first=3)
    torch.testing.assert_close(p, q, rtol=0, atol=1e-3)


@pytest.mark.parametrize("scales", [torch.ones(7), torch.ones(31), torch.ones(31, 2)], ids=lambda t: str(tuple(t.shape)))
def test_a_damaged_checkpoint_is_refused_before_anything_changes(scales):
    optimizer, p = adam_mini(momentum_dtype="8bit")
    run(optimizer, p, 1)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["exp_avg_scale"] = scales
    before = optimizer.state[p]["exp_avg"].clone()
    with pytest.raises(ValueError, match=r"first moment of parameter 'w' has scales of shape .*, but for a tensor .* \(31, 3\).*damaged"):
        optimizer.load_state_dict(state)
    assert torch.equal(optimizer.state[p]["exp_avg"], before)


# ---- bfloat16 weights


def drift(way, stochastic_rounding, steps=200, lr=2.0**-14, n=20_000, momentum_dtype=None):
    """Weights of 1, whose neighbours are 2^-8 below and 2^-7 above, after steps of -lr each: a constant gradient of one sign."""
    p = nn.Parameter(torch.ones(n, dtype=torch.bfloat16))
    options = dict(lr=lr, eps=0.0, weight_decay=0.0, momentum_dtype=momentum_dtype, stochastic_rounding=stochastic_rounding)
    optimizer = AdamMini([("w", p)], layouts={"w": BlockLayout.whole((n,))}, **options, **way.options)
    for _ in range(steps):
        p.grad = torch.ones_like(p)
        optimizer.step()
    return p.detach().float()


@BOTH
@pytest.mark.parametrize("momentum_dtype", [torch.float32, "8bit"], ids=str)
def test_updates_far_below_half_a_unit_arrive_on_average_and_are_lost_without(way, momentum_dtype):
    """Each of 200 steps is 2^-14, 1/64 of the distance to the next weight; the sum is just over three such distances."""
    assert bool((drift(way, False, momentum_dtype=momentum_dtype) == 1).all())
    weights = drift(way, True, momentum_dtype=momentum_dtype)
    expected = 1 - 200 * 2.0**-14
    # A step goes a unit u = 2^-8 down with chance c = 2^-14 / u, so that 200 of them have variance 200 u² c (1 - c).
    unit, chance = 2.0**-8, 2.0**-6
    deviation = unit * math.sqrt(200 * chance * (1 - chance))
    assert abs(float(weights.mean()) - expected) < 4 * deviation / math.sqrt(weights.numel())
    assert float(weights.std()) == pytest.approx(deviation, rel=0.05)
    below = torch.arange(0, 14) * unit
    counts = torch.tensor([float((weights == 1 - b).sum()) for b in below]) / weights.numel()
    binomial = torch.tensor([math.comb(200, k) * chance**k * (1 - chance) ** (200 - k) for k in range(14)])
    assert float((counts - binomial).abs().max()) < 4 * math.sqrt(0.25 / weights.numel())


@BOTH
def test_rounding_repeats_whatever_torch_draws_and_differs_between_parameters(way):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = drift(way, True, steps=40)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    torch.rand(5)
    assert torch.equal(drift(way, True, steps=40), first)

    p, q = (nn.Parameter(torch.ones(5000, dtype=torch.bfloat16)) for _ in range(2))
    layouts = {name: BlockLayout.whole((5000,)) for name in "pq"}
    optimizer = AdamMini([("p", p), ("q", q)], lr=2.0**-10, layouts=layouts, stochastic_rounding=True, **way.options)
    for _ in range(4):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        optimizer.step()
    moved = torch.stack([(p != 1).float(), (q != 1).float()])
    assert not torch.equal(p, q)
    assert abs(float(torch.corrcoef(moved)[0, 1])) < 4 / math.sqrt(5000)


@pytest.mark.parametrize("shape", [(300, 70), (16, 32, 3, 5), (3, 70_000), (5000,), (2000, 3)], ids=str)
@pytest.mark.parametrize("momentum_dtype", [None, "8bit"], ids=str)
@pytest.mark.filterwarnings("ignore:AdamMini steps parameter 'p' slowly")
def test_the_bits_are_those_of_an_element_whoever_steps_it_in_whatever_memory(shape, momentum_dtype):
    """Steps of exactly lr each, so that what is rounded has no rounding of its own."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator).to(torch.bfloat16)
    signs = [torch.randn(shape, generator=generator).sign().to(torch.bfloat16) for _ in range(3)]
    orders = {None, tuple(reversed(range(len(shape)))), (0, *range(2, len(shape)), 1) if len(shape) > 2 else None}
    results = []
    for order in orders:
        for options in ({}, {"fused": False}):
            p, other = nn.Parameter(in_order(start, order).clone(memory_format=torch.preserve_format)), nn.Parameter(torch.ones(2))
            layouts = {"p": BlockLayout.each_line(shape), "other": BlockLayout.whole((2,))}
            options = dict(lr=2.0**-12, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0, **options)
            params = [("other", other), ("p", p)]
            optimizer = AdamMini(params, layouts=layouts, momentum_dtype=momentum_dtype, stochastic_rounding=True, **options)
            for sign in signs:
                p.grad, other.grad = torch.empty_like(p).copy_(sign), torch.ones(2)
                optimizer.step()
            assert not torch.equal(p, start)
            results.append(p.detach())
    assert all(torch.equal(result, results[0]) for result in results)


@BOTH
def test_other_dtypes_are_rounded_as_ever_and_what_is_not_finite_stays_so(way):
    for dtype in (torch.float32, torch.float64):
        results = []
        for stochastic_rounding in (False, True):
            optimizer, p = adam_mini(dtype=dtype, stochastic_rounding=stochastic_rounding, **way.options)
            run(optimizer, p, 3)
            results.append(p.detach())
        assert torch.equal(*results)
    optimizer, p = adam_mini(dtype=torch.bfloat16, stochastic_rounding=True, **way.options)
    p.grad = torch.ones_like(p)
    p.data[0] = torch.tensor([math.nan, math.inf, -math.inf] * 200)
    p.data[1] = torch.full((600,), -1, dtype=torch.int16).view(torch.bfloat16)  # a NaN of ones
    optimizer.step()
    assert bool(p[1].isnan().all())
    assert torch.equal(p[0].isnan(), torch.tensor([True, False, False] * 200))
    assert torch.equal(p[0].isposinf(), torch.tensor([False, True, False] * 200))
    assert bool(p[2:].isfinite().all())


@BOTH
def test_a_scalar_and_an_empty_tensor(way):
    scalar, empty = nn.Parameter(torch.ones((), dtype=torch.bfloat16)), nn.Parameter(torch.ones(0, 3, dtype=torch.bfloat16))
    layouts = {"scalar": BlockLayout.whole(()), "empty": BlockLayout.each_line((0, 3))}
    optimizer = AdamMini([("scalar", scalar), ("empty", empty)], lr=0.1, layouts=layouts, stochastic_rounding=True, **way.options)
    scalar.grad, empty.grad = torch.ones_like(scalar), torch.ones_like(empty)
    optimizer.step()
    assert float(scalar.detach()) == pytest.approx(0.9, rel=0.01)


# ---- training


def digits_loss(seed, dtype=torch.float32, **options):
    """Training loss of a small network on scikit-learn's digits at the end of 200 steps."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = (torch.tensor(digits.data) / 16).to(dtype), torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)).to(dtype)
    optimizer = AdamMini(model.named_parameters(), lr=1e-3, layouts=partition_model(model), **options)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for _ in range(200):
        chosen = torch.randint(len(x), (64,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]).float(), y[chosen]).backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(x).float(), y))


def test_training_stays_within_the_spread_of_float32_where_rounding_to_the_nearest_does_not():
    def losses(**options):
        return torch.tensor([digits_loss(seed, **options) for seed in range(3)])

    wide = losses()
    spread = float(wide.std())
    for momentum_dtype in (torch.bfloat16, "8bit"):
        assert abs(float((losses(momentum_dtype=momentum_dtype) - wide).mean())) < spread
    weights = {"dtype": torch.bfloat16, "momentum_dtype": "8bit"}
    assert abs(float((losses(**weights, stochastic_rounding=True) - wide).mean())) < spread
    assert float((losses(**weights) - wide).mean()) > spread
