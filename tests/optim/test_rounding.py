"""bfloat16 rounded at random: the hash written out in Python's whole numbers, its statistics, and the places of elements."""

from __future__ import annotations

import math
import struct

import pytest
import torch

from lightning_adam_mini.optim.rounding import Place, round_at_random, seed_of

CPU = torch.device("cpu")
WORD, LONG = 2**32, 2**64


def hash_by_hand(index, step, number):
    """16 random bits."""
    seed = (step * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03) % LONG
    seed = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9 % LONG
    seed = (seed ^ (seed >> 27)) * 0x94D049BB133111EB % LONG
    seed ^= seed >> 31
    x = (index % WORD) ^ (seed % WORD)
    x = (x ^ (x >> 16)) * 0x7FEB352D % WORD
    x = ((x ^ (x >> 15)) + seed // WORD + index // WORD * 0x9E3779B1) * 0x846CA68B % WORD
    x = (x ^ (x >> 16)) * 0x7FEB352D % WORD
    return x >> 16


def rounded_by_hand(value, index, step, number):
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return struct.unpack("<f", struct.pack("<I", (bits + hash_by_hand(index, step, number)) % WORD & 0xFFFF0000))[0]


def up(indices, step=1, number=0, part=0.5):
    """Which elements of value 1 + part of a unit are rounded up to the next number."""
    values = torch.full(indices.shape, 1 + part * 2.0**-7)
    return round_at_random(values, indices, seed_of(step, number)) > 1


@pytest.mark.parametrize("step", [1, 7, 100_000, 2**40])
@pytest.mark.parametrize("number", [0, 1, 500])
def test_it_is_the_hash(step, number):
    indices = [0, 1, 2, 255, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 5 * 2**33 + 3]
    generator = torch.Generator().manual_seed(step % 1000 + number)
    values = torch.randn(len(indices), generator=generator) * 10.0 ** torch.arange(-5, 6)
    got = round_at_random(values, torch.tensor(indices), seed_of(step, number))
    assert got.tolist() == [rounded_by_hand(value, index, step, number) for value, index in zip(values.tolist(), indices, strict=True)]


def test_numbers_of_bfloat16_stay_and_others_go_to_a_neighbour():
    exact = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16).float()
    indices = torch.arange(len(exact))
    got = round_at_random(exact, indices, seed_of(3, 0))
    assert torch.equal(got.isnan(), exact.isnan())
    assert torch.equal(got[~exact.isnan()], exact[~exact.isnan()])
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    down = (values.view(torch.int32) & -0x10000).view(torch.float32)
    above = ((values.view(torch.int32) & -0x10000) + 0x10000).view(torch.float32)
    got = round_at_random(values, torch.arange(10_000), seed_of(3, 0))
    assert bool(((got == down) | (got == above)).all())
    assert bool((got == down).any() and (got == above).any())


def test_what_is_not_finite_stays_so():
    values = torch.tensor([math.nan, math.inf, -math.inf])
    values = torch.cat([values, torch.full((1,), -1, dtype=torch.int32).view(torch.float32)])  # a NaN of ones
    got = round_at_random(values, torch.arange(4), seed_of(1, 0))
    assert got.isnan().tolist() == [True, False, False, True]
    assert got[1:3].tolist() == [math.inf, -math.inf]


# ---- statistics


@pytest.mark.parametrize("part", [1 / 16, 0.25, 0.5, 0.9])
def test_the_mean_is_right(part):
    n = 200_000
    share = float(up(torch.arange(n), part=part).float().mean())
    assert abs(share - part) < 4 * math.sqrt(part * (1 - part) / n)


def test_bits_are_uniform():
    """By the thresholds at which elements are rounded up: 64 of them are as likely as each other."""
    n = 64_000
    ups = torch.stack([up(torch.arange(n), part=part / 64) for part in range(1, 64)]).sum(0)
    counts = ups.bincount(minlength=64).double()
    chi_square = float(((counts - n / 64) ** 2 / (n / 64)).sum())
    assert abs(chi_square - 63) < 4 * math.sqrt(2 * 63)


N = 100_000
OTHERS = {
    "the next element": (torch.arange(1, N + 1), 1, 0),
    "the next row of 4096": (torch.arange(4096, N + 4096), 1, 0),
    "the element 2**32 further on": (torch.arange(2**32, N + 2**32), 1, 0),
    "the next step": (torch.arange(N), 2, 0),
    "a later step": (torch.arange(N), 1001, 0),
    "the next parameter": (torch.arange(N), 1, 1),
    "the next parameter in the next step": (torch.arange(N), 2, 1),
    "the next parameter in the step before": (torch.arange(N), 0, 1),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("part", [0.5, 0.1])
def test_it_is_uncorrelated_with(other, part):
    first, second = up(torch.arange(N), part=part).double(), up(*OTHERS[other], part=part).double()
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 4 / math.sqrt(N)


def test_seeds_of_steps_and_parameters_are_all_different():
    seeds = {seed_of(step, number) for step in range(1, 300) for number in range(300)}
    assert len(seeds) == 299 * 300


# ---- places


def index_of(shape):
    return torch.arange(math.prod(shape)).view(shape)


RECTANGLES = [
    ((), (), ()),
    ((7,), (2,), (4,)),
    ((6, 5), (0, 0), (6, 5)),
    ((6, 5), (2, 0), (3, 5)),
    ((6, 5), (1, 2), (3, 2)),
    ((6, 5), (3, 1), (1, 3)),
    ((6, 5), (3, 0), (0, 5)),
    ((4, 3, 5), (1, 0, 0), (2, 3, 5)),
    ((4, 3, 5), (0, 1, 0), (4, 2, 5)),
    ((4, 3, 5), (2, 1, 0), (1, 2, 5)),
    ((4, 3, 5), (0, 0, 3), (4, 3, 2)),
    ((1, 3, 5), (0, 1, 0), (1, 2, 5)),
]


@pytest.mark.parametrize(("shape", "offsets", "sizes"), RECTANGLES, ids=str)
def test_places_in_rectangles(shape, offsets, sizes):
    place = Place(0, shape, offsets, sizes)
    expected = index_of(shape)[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))]
    length = sizes[0] if sizes else 1
    assert torch.equal(place.indices(slice(0, length), CPU), expected if sizes else expected.view(1))
    for begin in range(length):
        assert torch.equal(place.indices(slice(begin, begin + 1), CPU), expected[begin : begin + 1] if sizes else expected.view(1))
    if place.first is not None and expected.numel():
        assert torch.equal(expected.flatten(), torch.arange(place.first, place.first + expected.numel()))
    in_a_row = expected.numel() == 0 or bool((expected.flatten().diff() == 1).all())
    assert (place.first is not None) == in_a_row or expected.numel() == 0


ORDERS = [((12,), (0,)), ((6, 5), (0, 1)), ((6, 5), (1, 0)), ((2, 3, 4, 5), (0, 2, 3, 1)), ((3, 4, 5), (2, 0, 1))]


@pytest.mark.parametrize(("shape", "order"), ORDERS, ids=str)
def test_places_in_ranges_of_memory(shape, order):
    """As FSDP1 holds them, of a parameter whose memory is in some order."""
    in_memory = index_of(shape).permute(order).flatten()
    numel = len(in_memory)
    for begin, end in ((0, numel), (1, numel - 2), (5, 6), (numel - 3, numel), (4, 4)):
        place = Place(0, shape, (), (end - begin,), begin, order)
        assert torch.equal(place.indices(slice(0, end - begin), CPU), in_memory[begin:end])
        middle = (end - begin) // 2
        assert torch.equal(place.indices(slice(middle, end - begin), CPU), in_memory[begin + middle : end])
        assert (place.first == begin) if list(order) == sorted(order) else (place.first is None)


def test_the_whole_is_rounded_as_its_pieces():
    shape = (40, 30)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    seed = seed_of(5, 2)
    whole = round_at_random(values, Place.whole(2, shape).indices(slice(0, 40), CPU), seed)
    for offsets, sizes in (((0, 0), (17, 30)), ((17, 0), (23, 30)), ((3, 4), (5, 20))):
        piece = tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))
        got = round_at_random(values[piece].contiguous(), Place(2, shape, offsets, sizes).indices(slice(0, sizes[0]), CPU), seed)
        assert torch.equal(got, whole[piece])
    begin, end = 333, 901
    place = Place(2, shape, (), (end - begin,), begin, (1, 0))
    in_memory = values.t().flatten()[begin:end]
    assert torch.equal(round_at_random(in_memory, place.indices(slice(0, end - begin), CPU), seed), whole.t().flatten()[begin:end])
