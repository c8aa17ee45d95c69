"""Momentum in 8 bits and bfloat16 weights that are rounded at random."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_adam_mini import AdamMini, BlockLayout, partition_model, to_adamw_state_dict
from lightning_adam_mini.optim import state_bytes
from lightning_adam_mini.optim.backends.cpp import build
from lightning_adam_mini.optim.quantized import convert_momentum, dequantize, num_scales, quantize

SHAPE = (101, 150)  # runs of 256 do not fit into its rows, nor into itself
LAYOUTS = {
    "elements": BlockLayout.per_parameter(SHAPE),
    "rows": BlockLayout.each_line(SHAPE),
    "columns": BlockLayout.each_line(SHAPE, axis=1),
    "heads": BlockLayout.grouped(SHAPE, "q:2x50|k:1x1"),
    "whole": BlockLayout.whole(SHAPE),
}


# The compiled loop, where there is a compiler, and the slices.
FUSED = [True, False] if not isinstance(build.load_kernel(), str) else [False]


def narrow(values):
    codes, scales = torch.empty(values.shape, dtype=torch.int8), torch.empty(num_scales(values.numel()))
    quantize(values, codes, scales)
    return codes, scales


def adam_mini(layout=LAYOUTS["rows"], dtype=torch.float32, seed=0, **options):
    p = nn.Parameter(torch.randn(layout.shape, generator=torch.Generator().manual_seed(seed)).to(dtype))
    return AdamMini([("w", p)], layouts={"w": layout}, **{"lr": 1e-2, "betas": (0.9, 0.95), **options}), p


def run(optimizer, p, steps, first=0):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(1000 + step)
        p.grad = (torch.randn(p.shape, generator=generator, dtype=torch.float64) + 0.3 * p.detach().double()).to(p.dtype)
        optimizer.step()


def reloaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---- the code


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1100), st.floats(-40, 35), st.integers(0, 2**31), st.booleans())
def test_codes_are_within_half_a_step_and_rounding_twice_is_rounding_once(n, exponent, seed, in_double):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, generator=generator, dtype=torch.float64) ** 3 * 10.0**exponent
    values = values if in_double else values.float()
    codes, scales = narrow(values)
    back = dequantize(codes, scales).double()
    for i, scale in enumerate(scales.double()):
        run = slice(256 * i, 256 * (i + 1))
        largest = float(values[run].abs().max())
        if largest < 2.0**-100 * (1 - 1e-6):
            assert not back[run].any()
            continue
        assert float(scale) == pytest.approx(largest, rel=1e-7)
        # Half a code is where the square roots are halfway.
        roots = (values[run].double().abs() / scale).sqrt() - (back[run].abs() / scale).sqrt()
        assert float(roots.abs().max()) <= 0.5 / 127 + 1e-6
        assert bool(((back[run] == 0) | (back[run].sign() == values[run].sign())).all())
    again, scales_again = narrow(dequantize(codes, scales))
    assert torch.equal(again, codes)
    assert torch.equal(scales_again, scales)


def test_one_element_far_above_the_rest_costs_its_own_run_alone():
    values = torch.full((512,), 1e-3)
    values[3] = 1e3
    back = dequantize(*narrow(values))
    torch.testing.assert_close(back[256:], values[256:], rtol=1e-6, atol=0)
    assert float(back[3]) == 1e3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(bad):
    values = torch.ones(600)
    values[300] = bad
    back = dequantize(*narrow(values))
    assert not math.isfinite(back[300])
    assert bool((back[:256] == 1).all())
    assert bool((back[512:] == 1).all())


# ---- the step


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"decoupled_weight_decay": False, "maximize": True}, {"lr": torch.tensor(1e-2)}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fused", FUSED)
def test_in_8_bits_only_the_momentum_that_is_carried_over_differs(kind, options, dtype, fused):
    """Each step against a float optimizer that starts it with the same weights and the momentum that the codes stand for."""
    ours, p = adam_mini(LAYOUTS[kind], dtype, momentum_dtype="8bit", weight_decay=0.1, fused=fused, **options)
    wide, q = adam_mini(LAYOUTS[kind], dtype, fused=False, foreach=False, weight_decay=0.1, **options)
    for step in range(4):
        run(ours, p, 1, step), run(wide, q, 1, step)
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        # A decayed gradient that nearly cancels has few digits left, and fused multiply-add keeps others of them.
        torch.testing.assert_close(ours.second_moments()["w"], wide.second_moments()["w"], rtol=1e-6, atol=1e-10)
        exact = narrow(wide.state[q]["exp_avg"])
        assert float((ours.state[p]["exp_avg"].int() - exact[0].int()).abs().max()) <= 1  # where it lies halfway
        with torch.no_grad():
            q.copy_(p)
            wide.state[q]["exp_avg"].copy_(dequantize(ours.state[p]["exp_avg"], ours.state[p]["exp_avg_scale"]))


@pytest.mark.parametrize(
    "shape",
    [(4096,), (1, 5000), (70_001,), (1000, 147), (3, 70_000), (64, 32, 3, 3), (2, 2, 2, 2, 300)],
    ids=lambda s: "x".join(map(str, s)),
)
@pytest.mark.parametrize("fused", FUSED)
def test_shapes_that_are_cut_into_slices(shape, fused):
    columns = [BlockLayout.each_line(shape, axis=1)] if len(shape) > 1 else []
    for layout in (BlockLayout.whole(shape), BlockLayout.each_line(shape), BlockLayout.per_parameter(shape), *columns):
        ours, p = adam_mini(layout, momentum_dtype="8bit", fused=fused)
        wide, q = adam_mini(layout, fused=False, foreach=False)
        run(ours, p, 1), run(wide, q, 1)
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        codes, scales = narrow(wide.state[q]["exp_avg"])
        torch.testing.assert_close(ours.state[p]["exp_avg_scale"], scales, rtol=1e-6, atol=0)
        difference = (ours.state[p]["exp_avg"].int() - codes.int()).abs()
        assert int(difference.max()) <= 1  # where it lies halfway
        assert float(difference.float().mean()) < 1e-4


def test_weights_of_any_memory_format():
    layout = BlockLayout.each_line((16, 32, 3, 5))
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        p = nn.Parameter(torch.randn(layout.shape, generator=torch.Generator().manual_seed(0)).to(memory_format=memory_format))
        optimizer = AdamMini([("w", p)], layouts={"w": layout}, momentum_dtype="8bit", fused=False)
        run(optimizer, p, 3)
        results.append((p.detach().contiguous(), optimizer.state[p]["exp_avg"]))
        assert p.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(*(weights for weights, _ in results), rtol=1e-5, atol=1e-6)
    assert float((results[0][1].int() - results[1][1].int()).abs().max()) <= 1


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
    assert state_bytes(optimizer) <= 1.08 * sum(p.numel() for p in params.values())


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_with_8_bit_momentum(fused, dtype):
    ours, p = adam_mini(dtype=dtype, momentum_dtype="8bit", fused=fused)
    wide, q = adam_mini(dtype=dtype, momentum_dtype=torch.float32, fused=False)
    run(ours, p, 1), run(wide, q, 1)
    torch.testing.assert_close(p, q)
    assert int((ours.state[p]["exp_avg"].int() - narrow(wide.state[q]["exp_avg"])[0].int()).abs().max()) <= 1


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_spoils_its_block_and_run_alone(fused, bad):
    optimizer, p = adam_mini(momentum_dtype="8bit", fused=fused)
    run(optimizer, p, 1)
    p.grad[50, 75] = bad
    optimizer.step()
    finite = p.isfinite()
    assert not bool(finite[50, 75])
    assert bool(finite[:50].all() and finite[51:].all())
    scales = optimizer.state[p]["exp_avg_scale"].isfinite()
    assert scales.tolist() == [i != (50 * 150 + 75) // 256 for i in range(len(scales))]


def test_mistakes_are_told():
    optimizer, p = adam_mini(momentum_dtype="8bit", fused=True, layout=BlockLayout.each_line((16, 32, 3, 5)))
    p.data = p.data.to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match=r"'w' of shape .* in one compiled loop because"):
        run(optimizer, p, 1)
    assert not optimizer.state
    for wrong in ("8-bit", "bfloat16", torch.int8):
        with pytest.raises(ValueError, match="Invalid momentum_dtype value: .* or '8bit'"):
            AdamMini([p], momentum_dtype=wrong)


# ---- checkpoints


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_in_8_bits_is_exact_also_by_way_of_adamw(dtype):
    whole, p = adam_mini(dtype=dtype, momentum_dtype="8bit", stochastic_rounding=True)
    run(whole, p, 6)
    first, q = adam_mini(dtype=dtype, momentum_dtype="8bit", stochastic_rounding=True)
    run(first, q, 3)
    for state in (first.state_dict(), to_adamw_state_dict(first.state_dict())):
        second, r = adam_mini(dtype=dtype, momentum_dtype="8bit", stochastic_rounding=True)
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
    cpu = torch.device("cpu")
    expected = convert_momentum(before.state[p], cpu, torch.float32)["exp_avg"]
    got = convert_momentum(after.state[q], cpu, torch.float32)["exp_avg"]
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
    ours, p = adam_mini(LAYOUTS["elements"], momentum_dtype="8bit")
    ours.load_state_dict(reloaded(theirs.state_dict()))
    codes, scales = narrow(theirs.state[q]["exp_avg"])
    assert torch.equal(ours.state[p]["exp_avg"], codes)
    assert torch.equal(ours.state[p]["exp_avg_scale"], scales)
    run(ours, p, 2)

    state = reloaded(to_adamw_state_dict(ours.state_dict()))
    again = torch.optim.AdamW([q])
    again.load_state_dict(state)
    assert set(again.state[q]) == {"step", "exp_avg", "exp_avg_sq"}
    assert again.state[q]["exp_avg"].dtype == torch.float32
    assert torch.equal(again.state[q]["exp_avg"], dequantize(ours.state[p]["exp_avg"], ours.state[p]["exp_avg_scale"]))
    run(again, q, 2)


def test_a_damaged_checkpoint_is_refused_before_anything_changes():
    optimizer, p = adam_mini(momentum_dtype="8bit")
    run(optimizer, p, 1)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["exp_avg_scale"] = torch.ones(7)
    before = optimizer.state[p]["exp_avg"].clone()
    with pytest.raises(ValueError, match=r"momentum of parameter 'w' in 8 bits has scales of shape \(7,\).*there are 60"):
        optimizer.load_state_dict(state)
    assert torch.equal(optimizer.state[p]["exp_avg"], before)


# ---- bfloat16 weights


def drift(stochastic_rounding, place=0, steps=200, lr=2.0**-14, n=20_000, momentum_dtype=None):
    """Weights of 1, whose neighbours are 2^-8 below and 2^-7 above, after steps of -lr each: a constant gradient of one sign."""
    p, other = nn.Parameter(torch.ones(n, dtype=torch.bfloat16)), nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    params = [("other", other)] * place + [("w", p)]
    optimizer = AdamMini(
        params,
        lr=lr,
        eps=0.0,
        weight_decay=0.0,
        layouts={"w": BlockLayout.whole((n,)), "other": BlockLayout.whole((1,))},
        momentum_dtype=momentum_dtype,
        stochastic_rounding=stochastic_rounding,
    )
    for _ in range(steps):
        p.grad = torch.ones_like(p)
        optimizer.step()
    return p.detach().float()


@pytest.mark.parametrize("momentum_dtype", [torch.float32, "8bit"], ids=str)
def test_updates_far_below_half_a_unit_arrive_on_average_and_are_lost_without(momentum_dtype):
    """Each of 200 steps is 2^-14, 1/64 of the distance to the next weight; the sum is just over three such distances."""
    assert bool((drift(False, momentum_dtype=momentum_dtype) == 1).all())
    weights = drift(True, momentum_dtype=momentum_dtype)
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


def test_rounding_repeats_whatever_torch_draws_and_differs_between_parameters():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = drift(True, steps=40)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    torch.rand(5)
    assert torch.equal(drift(True, steps=40), first)

    p, q = (nn.Parameter(torch.ones(5000, dtype=torch.bfloat16)) for _ in range(2))
    layouts = {name: BlockLayout.whole((5000,)) for name in "pq"}
    optimizer = AdamMini([("p", p), ("q", q)], lr=2.0**-10, layouts=layouts, stochastic_rounding=True)
    for _ in range(4):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        optimizer.step()
    moved = torch.stack([(p != 1).float(), (q != 1).float()])
    assert not torch.equal(p, q)
    assert abs(float(torch.corrcoef(moved)[0, 1])) < 4 / math.sqrt(5000)


def test_other_dtypes_are_rounded_as_ever_and_what_is_not_finite_stays_so():
    for dtype in (torch.float32, torch.float64):
        results = []
        for stochastic_rounding in (False, True):
            optimizer, p = adam_mini(dtype=dtype, stochastic_rounding=stochastic_rounding)
            run(optimizer, p, 3)
            results.append(p.detach())
        assert torch.equal(*results)
    optimizer, p = adam_mini(dtype=torch.bfloat16, stochastic_rounding=True)
    p.grad = torch.ones_like(p)
    p.data[0] = torch.tensor([math.nan, math.inf, -math.inf] * 50)
    p.data[1] = torch.full((150,), -1, dtype=torch.int16).view(torch.bfloat16)  # a NaN of ones
    optimizer.step()
    assert bool(p[1].isnan().all())
    assert torch.equal(p[0].isnan(), torch.tensor([True, False, False] * 50))
    assert torch.equal(p[0].isposinf(), torch.tensor([False, True, False] * 50))
    assert bool(p[2:].isfinite().all())


def test_a_scalar_and_an_empty_tensor():
    scalar, empty = nn.Parameter(torch.ones((), dtype=torch.bfloat16)), nn.Parameter(torch.ones(0, 3, dtype=torch.bfloat16))
    optimizer = AdamMini(
        [("scalar", scalar), ("empty", empty)],
        lr=0.1,
        layouts={"scalar": BlockLayout.whole(()), "empty": BlockLayout.each_line((0, 3))},
        stochastic_rounding=True,
    )
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
