"""What 8-bit codes are: against codes that are worked out run by run in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_adam_mini.optim.codecs import EightBit, Plain, codec_for, codec_of, read_momentum_dtype, row_of
from tests.optim.backends.exact import decoded, row_by_hand, run_lengths

ROWS = {
    (50, 64): 64,
    (64, 32, 3, 3): 288,
    (8, 16, 128): 128,
    (100, 4, 5, 6): 120,
    (600, 8): 8,
    (3, 700): 700,
    (2, 2, 2, 2, 300): 300,
    (40, 257): 257,
    (5000,): 5000,
    (10000, 3): 30000,
    (300, 7): 2100,
    (1, 2000): 2000,
    (2000, 1): 2000,
    (): 1,
}
"""Shapes, and the elements of a row of each."""


def encode(codec, values):
    kept = {suffix: torch.full(field.shape, 7, dtype=field.dtype) for suffix, field in codec.fields.items()}  # all is overwritten
    codec.encode_(values, kept)
    return kept


def by_hand(values, lengths):
    """Codes, scales and what they stand for, of values whose runs have these lengths."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    largest = np.maximum.reduceat(np.abs(flat), np.cumsum(lengths) - lengths) if len(flat) else np.zeros(0)
    scales = np.where(largest < 2.0**-100, 0, largest)
    codes = np.sign(flat) * np.round(127 * np.sqrt(np.abs(flat) / np.repeat(np.where(scales == 0, np.inf, scales), lengths)))
    return codes, scales, decoded(codes, scales, lengths)


def assert_as_by_hand(codec, kept, values, lengths):
    codes, scales, back = by_hand(values, lengths)
    assert kept["_scale"].flatten().numpy() == pytest.approx(scales, rel=1e-7)
    difference = np.abs(kept[""].flatten().numpy() - codes)
    assert difference.max(initial=0) <= 1, "and one where a value is halfway between two codes"
    assert difference.sum() <= 1e-3 * len(difference)
    same = difference == 0
    got = codec.decode(kept, torch.float32).flatten().double().numpy()
    np.testing.assert_allclose(got[same], back[same], rtol=1e-6, atol=0)


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3


# ---- codes


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(700,), (3, 300), (20, 64), (9, 7, 10), (5, 255), (0, 64)]), st.floats(-40, 35), st.integers(0, 2**31), st.booleans()
)
def test_codes_are_within_half_a_step_and_rounding_twice_is_rounding_once(shape, exponent, seed, in_double):
    values = random(shape, seed) * 10.0**exponent
    values = values if in_double else values.float()
    codec = EightBit(shape)
    kept = encode(codec, values)
    back = codec.decode(kept, torch.float32)
    scales = torch.repeat_interleave(
        kept["_scale"].double().flatten(), torch.tensor(run_lengths(math.prod(shape), row_of(shape)), dtype=torch.int64)
    ).view(shape)
    there = scales > 0
    # Half a code is where the square roots are halfway.
    roots = (values.double().abs() / scales).sqrt() - (back.double().abs() / scales).sqrt()
    assert not bool((roots[there].abs() > 0.5 / 127 + 1e-6).any())
    assert bool(((back == 0) | (back.sign() == values.sign()))[there].all())
    assert not bool(back[~there].any())
    assert bool((values[~there].abs() < 2.0**-100 * (1 + 1e-6)).all())
    for again in (encode(codec, back), encode(codec, codec.decode(kept, torch.float64))):
        assert all(torch.equal(again[suffix], kept[suffix]) for suffix in kept)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_runs_end_where_rows_do(shape, dtype):
    assert row_of(shape) == row_by_hand(shape) == ROWS[shape]
    values = random(shape).to(dtype)
    codec = EightBit(shape)
    kept = encode(codec, values)
    assert kept[""].shape == shape
    runs = run_lengths(math.prod(shape), ROWS[shape])
    assert kept["_scale"].numel() == len(runs)
    assert_as_by_hand(codec, kept, values.double(), runs)


def test_scales_have_the_first_dimensions_of_the_tensor_where_these_tell_rows_apart():
    """So that one who takes rows of a tensor, as a shard does, can take the scales of them."""
    scales = {shape: EightBit(shape).fields["_scale"].shape for shape in ROWS}
    assert scales[50, 64] == (50, 1)
    assert scales[64, 32, 3, 3] == (64, 2)
    assert scales[8, 16, 128] == (8, 16, 1)
    assert scales[5000,] == (20,)
    assert scales[10000, 3] == (118,)
    whole, rows = EightBit((64, 32, 3, 3)), EightBit((5, 32, 3, 3))
    values = random(whole.shape)
    kept, some = encode(whole, values), encode(rows, values[20:25])
    assert all(torch.equal(kept[suffix][20:25], some[suffix]) for suffix in kept)


RANGES = [(5000, 300, 0), (5000, 300, 120), (5000, 64, 63), (100, 300, 250), (100, 300, 20), (5000, 700, 1), (0, 64, 5)]


@pytest.mark.parametrize(("elements", "row", "lead"), RANGES)
def test_a_range_of_a_larger_tensor_has_its_rows(elements, row, lead):
    """As FSDP1 holds it: with the end of a row first, then whole rows, then the beginning of one."""
    values = random((elements,))
    codec = EightBit((elements,), row, lead)
    kept = encode(codec, values)
    runs = run_lengths(elements, row, lead)
    assert kept["_scale"].numel() == len(runs)
    assert_as_by_hand(codec, kept, values, runs)


BY_LINES = [*(EightBit(shape) for shape in ROWS if len(shape) > 1 and ROWS[shape] < math.prod(shape)), Plain((30, 7, 5), torch.bfloat16)]
BY_RUNS = [
    *(EightBit(shape) for shape in ROWS if shape and ROWS[shape] == math.prod(shape)),
    EightBit((5000,), 300, 120),
    EightBit((5000,), 64, 63),
    EightBit((2000,), 3000, 2990),
    EightBit((50, 64), 3200),
    EightBit((64, 32, 3, 3), 64 * 288),
    Plain((5000,), torch.float32),
]


@pytest.mark.parametrize("elements", [1, 100, 256, 1000, 10**6])
@pytest.mark.parametrize("codec", [*BY_LINES, *BY_RUNS], ids=str)
def test_slices_cover_each_element_once_and_have_the_codes_of_the_whole(codec, elements):
    values = random(codec.shape)
    whole = encode(codec, values)
    by_slices = {suffix: torch.full_like(kept, 7) for suffix, kept in whole.items()}
    back, times = torch.zeros(codec.shape), {suffix: torch.zeros(kept.shape, dtype=torch.int64) for suffix, kept in whole.items()}
    sizes = []
    for piece, lines, at in codec.slices(elements):
        views = {suffix: by_slices[suffix][part] for suffix, part in at.items()}
        assert {suffix: view.shape for suffix, view in views.items()} == {suffix: field.shape for suffix, field in piece.fields.items()}
        piece.encode_(values[lines], views)
        back[lines] = piece.decode(views, torch.float32)
        for suffix, part in at.items():
            times[suffix][part] += 1
        sizes.append(math.prod(piece.shape))
    assert all(bool((count == 1).all()) for count in times.values())
    assert all(torch.equal(by_slices[suffix], kept) for suffix, kept in whole.items())
    assert torch.equal(back, codec.decode(whole, torch.float32))
    line = math.prod(codec.shape[1:])
    assert max(sizes) <= max(elements, 300, line if codec in BY_LINES else math.lcm(256, line)), "and are no longer than they must be"


def test_all_zeros_are_zero_and_memory_to_work_in_is_used():
    codec = EightBit((40, 257))
    zeros = {suffix: torch.zeros(field.shape, dtype=field.dtype) for suffix, field in codec.fields.items()}
    assert not bool(codec.decode(zeros, torch.float32).any())
    values = random(codec.shape).float()
    plain = encode(codec, values)
    kept = {suffix: torch.zeros_like(t) for suffix, t in plain.items()}
    out, scratch = torch.empty(2, values.numel())
    codec.encode_(values, kept, scratch)
    assert all(torch.equal(kept[suffix], plain[suffix]) for suffix in plain)
    back = codec.decode(kept, torch.float32, out, scratch)
    assert back.data_ptr() == out.data_ptr()
    assert torch.equal(back, codec.decode(plain, torch.float32))


def test_the_memory_of_values_may_be_in_any_order():
    values = random((64, 32, 3, 3))
    codec = EightBit((64, 32, 3, 3))
    kept = encode(codec, values)
    for turned in (values.to(memory_format=torch.channels_last), values.transpose(0, 3).contiguous().transpose(0, 3)):
        assert all(torch.equal(t, kept[suffix]) for suffix, t in encode(codec, turned).items())


def test_one_element_far_above_the_rest_costs_its_own_run_alone():
    values = torch.full((2, 512), 1e-3)
    values[0, 3] = 1e3
    codec = EightBit((2, 512))
    back = codec.decode(encode(codec, values), torch.float32)
    torch.testing.assert_close(back[0, 256:], values[0, 256:], rtol=1e-6, atol=0)
    torch.testing.assert_close(back[1], values[1], rtol=1e-6, atol=0)
    assert float(back[0, 3]) == 1e3


def test_rows_of_any_size_keep_their_digits():
    """The reason why a run ends where a row does: tokens that come often have larger moments than those beside them, that hardly come."""
    sizes = 10.0 ** torch.linspace(-3, 3, 500)[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    values = torch.randn(500, 64, generator=torch.Generator().manual_seed(1)) * sizes[:, None]

    def errors(codec):
        return (codec.decode(encode(codec, values), torch.float32) - values).norm(dim=1) / values.norm(dim=1)

    assert float(errors(EightBit((500, 64))).max()) < 0.02
    assert float(errors(EightBit((500, 64), values.numel())).max()) > 0.5, "where runs go on over the ends of rows"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_finite_stays_so_in_its_run(bad, dtype):
    values = torch.ones(2, 600, dtype=dtype)
    values[0, 300] = bad
    codec = EightBit((2, 600))
    back = codec.decode(encode(codec, values), torch.float32)
    assert not math.isfinite(back[0, 300])
    assert bool((back[0, :256] == 1).all())
    assert bool((back[0, 512:] == 1).all())
    assert bool((back[1] == 1).all())


# ---- which codec


def test_small_tensors_and_dtypes_are_kept_plain():
    assert codec_for((64, 64), torch.bfloat16, "8bit") == EightBit((64, 64))
    assert codec_for((63, 65), torch.bfloat16, "8bit") == Plain((63, 65), torch.bfloat16)
    assert codec_for((64, 64), torch.float32, None) == Plain((64, 64), torch.float32)
    assert codec_for((64, 64), torch.float32, torch.bfloat16) == Plain((64, 64), torch.bfloat16)
    assert codec_for((64, 640), torch.float32, "8bit", held=(1, 640)) == EightBit((1, 640)), "of which a rank may hold little"


@pytest.mark.parametrize("wrong", ["8-bit", "bf16", torch.int8, 8])
def test_other_wishes_are_refused(wrong):
    with pytest.raises(ValueError, match="Invalid momentum_dtype value: .* or '8bit'"):
        read_momentum_dtype(wrong)


@pytest.mark.parametrize("shape", [shape for shape in ROWS if shape], ids=str)
def test_codes_of_earlier_versions_whose_runs_go_on_over_the_ends_of_rows_are_read(shape):
    values = random(shape)
    numel = math.prod(shape)
    codes, scales, back = by_hand(values, run_lengths(numel, numel))
    kept = {"": torch.from_numpy(codes).to(torch.int8).view(shape), "_scale": torch.from_numpy(scales).float()}
    got = codec_of(kept).decode(kept, torch.float32)
    assert got.shape == shape
    np.testing.assert_allclose(got.flatten().double().numpy(), back, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [shape for shape in ROWS if shape], ids=str)
def test_codes_tell_how_they_were_made(shape):
    kept = encode(EightBit(shape), random(shape))
    assert codec_of(kept).fields == EightBit(shape).fields
    assert torch.equal(codec_of(kept).decode(kept, torch.float32), EightBit(shape).decode(kept, torch.float32))
    assert codec_of({"": torch.ones(3, 2)}) == Plain((3, 2), torch.float32)
    with pytest.raises(ValueError, match=r"has scales of shape \(7, 7\), but for a tensor of shape"):
        codec_of({**kept, "_scale": torch.ones(7, 7)})


@pytest.mark.parametrize("codec", [Plain((5, 3), torch.bfloat16), *map(EightBit, ROWS), EightBit((40, 100), row=64, lead=32)], ids=str)
def test_stacked_fields_are_those_of_each_along_the_first_dimension(codec):
    assert codec.stacked(1) == codec
    stacked = codec.stacked(3)
    if stacked is None:
        assert codec.row is not None or len(codec.shape) < 2 or row_of(codec.shape) == math.prod(codec.shape)
        return
    values = [torch.randn(codec.shape) for _ in range(3)]
    each, together = [encode(codec, one) for one in values], encode(stacked, torch.cat(values))
    for suffix, field in together.items():
        assert torch.equal(field, torch.cat([one[suffix] for one in each]))
    assert torch.equal(stacked.decode(together, torch.float32), torch.cat([codec.decode(one, torch.float32) for one in each]))
