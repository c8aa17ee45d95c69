"""Block layouts against a literal float64 loop over the elements of each block."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_adam_mini.block_shard import BlockShard
from lightning_adam_mini.layout import BlockLayout

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-13}
few = settings(max_examples=200, deadline=None)

# ---- random line orders, made together with the block of each line ------------------------------------------------------

ROLES = st.sampled_from(["q", "k", "v"])
SMALL = st.integers(1, 2)


@st.composite
def line_orders(draw, depth: int = 0) -> tuple[str, list]:
    """A line order and the block of each of its lines: a new number for each head, the role's name where it has no heads."""
    fresh = draw(st.just(itertools.count())) if depth == 0 else None
    text, build = draw(_items(depth))
    return text, build(fresh)


def _items(depth: int) -> st.SearchStrategy:
    return st.lists(_item(depth), min_size=1, max_size=2).map(
        lambda items: ("|".join(text for text, _ in items), lambda fresh: [b for _, build in items for b in build(fresh)])
    )


def _item(depth: int) -> st.SearchStrategy:
    kinds = [st.builds(_heads, ROLES, SMALL, SMALL, st.booleans()), st.builds(_no_heads, ROLES, st.integers(1, 3))]
    marked = st.tuples(ROLES, st.sampled_from(["", "", "*", "+"]))
    kinds.append(st.builds(_alternating, SMALL, st.lists(marked, min_size=1, max_size=3, unique_by=lambda r: r[0]), SMALL))
    if depth < 2:
        kinds.append(st.builds(_repeat, SMALL, _items(depth + 1)))
    return st.one_of(kinds)


def _heads(role, heads, size, head_fastest):
    def build(fresh):
        blocks = [next(fresh) for _ in range(heads)]
        lines = np.empty((heads, size), dtype=object)
        for head, d in np.ndindex(heads, size):
            lines[head, d] = blocks[head]
        return list((lines.T if head_fastest else lines).flat)

    return f"{role}:{heads}x{size}{'t' if head_fastest else ''}", build


def _no_heads(role, size):
    return f"{role}:{size}", lambda fresh: [role] * size


def _alternating(heads, marked, size):
    def build(fresh):
        lines = []
        for _ in range(heads):
            of_head = {role: role if mark == "+" else next(fresh) for role, mark in marked}
            for _ in range(size):
                lines += [next(fresh) if mark == "*" else of_head[role] for role, mark in marked]
        return lines

    return f"{heads}*[{','.join(role + mark for role, mark in marked)}]x{size}", build


def _repeat(count, inner):
    text, build = inner
    return f"{count}*({text})", lambda fresh: [b for _ in range(count) for b in build(fresh)]


# ---- random layouts and tensors --------------------------------------------------------------------------------------------


@st.composite
def layouts(draw) -> tuple[BlockLayout, dict]:
    """A layout, and the coordinates of the elements of each block by the block's place in ``block_shape``."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 0]), max_size=5).filter(lambda s: math.prod(s) <= 64))
    dims = draw(st.sets(st.integers(0, len(shape) - 1))) if shape else set()
    free = [d for d in range(len(shape)) if d not in dims]
    axis = lines = blocks = None
    if free and draw(st.booleans()):
        axis = draw(st.sampled_from(free))
        lines, blocks = draw(line_orders())
        shape[axis] = len(blocks)
    layout = BlockLayout(tuple(shape), tuple(dims), axis, lines)
    number = {b: i for i, b in enumerate(dict.fromkeys(blocks or ()))}
    members: dict[tuple, list] = {}
    for place in np.ndindex(*(1 if d in dims else len(number) if d == axis else n for d, n in enumerate(shape))):
        members[place] = []
    for at in np.ndindex(*shape):
        place = tuple(0 if d in dims else number[blocks[i]] if d == axis else i for d, i in enumerate(at))
        members[place].append(at)
    return layout, members


def tensor(shape: tuple[int, ...], strides: str, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random numbers in memory as ``strides`` says."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    if strides == "transposed":
        return normal(*reversed(shape)).permute([*reversed(range(len(shape)))])
    if strides == "sliced":
        return normal(*(2 * n + 1 for n in shape))[tuple(slice(1, None, 2) for _ in shape)]
    if strides == "expanded":
        return normal(*(1 if d % 2 else n for d, n in enumerate(shape))).expand(shape)
    if strides == "channels_last" and len(shape) in (4, 5):
        return normal(*shape).to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    return normal(*shape)


STRIDES = st.sampled_from(["contiguous", "transposed", "sliced", "expanded", "channels_last"])
SEEDS = st.integers(0, 2**16)


def loop(members: dict, shape: tuple[int, ...], values: torch.Tensor, power: int) -> torch.Tensor:
    """Mean of ``values ** power`` over each block, an element at a time; 0 for a block without elements."""
    out = torch.zeros(shape, dtype=torch.float64)
    for place, elements in members.items():
        total = 0.0
        for at in elements:
            total += float(values[at]) ** power
        out[place] = total / len(elements) if elements else 0.0
    return out


def close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=TOLERANCE.get(dtype, 1e-6), atol=TOLERANCE.get(dtype, 1e-6))


@few
@given(layouts(), STRIDES, st.sampled_from(DTYPES), SEEDS)
def test_averaging(case, strides, dtype, seed):
    layout, members = case
    values = tensor(layout.shape, strides, dtype, seed)
    before = values.clone()
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    for result, power in ((layout.mean_square(values), 2), (layout.average(values), 1)):
        assert result.dtype == kept
        assert tuple(result.shape) == layout.block_shape
        close(result, loop(members, layout.block_shape, values, power), dtype)
    assert torch.equal(values, before)


@few
@given(layouts(), SEEDS)
def test_spreading(case, seed):
    """Each element gets its block's value; gathering and averaging undo that to the bit."""
    layout, members = case
    assert layout.num_blocks == len(members)
    blocks = tensor(layout.block_shape, "contiguous", torch.float32, seed)
    spread = layout.spread(blocks)
    full = spread.expand(layout.shape)
    for place, elements in members.items():
        for at in elements:
            assert full[at] == blocks[place]
    assert torch.equal(layout.gather(spread), blocks)
    if all(members.values()):
        assert torch.equal(layout.average(full), blocks)
    if layout.lines is None:
        assert spread is blocks


@st.composite
def cuts(draw, n: int) -> list[tuple[int, int]]:
    """(offset, size) of the pieces of a dimension, perhaps empty."""
    ends = [0, *sorted(draw(st.lists(st.integers(0, n), max_size=1 if n > 2 else 0))), n]
    return [(a, b - a) for a, b in itertools.pairwise(ends)]


@settings(max_examples=120, deadline=None)
@given(layouts(), STRIDES, st.sampled_from(DTYPES), SEEDS, st.data())
def test_shards(case, strides, dtype, seed, data):
    """The pieces' sums make up the whole; each piece knows whether it needs the others, and its part of the spread."""
    layout, members = case
    values = tensor(layout.shape, strides, dtype, seed)
    blocks = tensor(layout.block_shape, "contiguous", torch.float32, seed)
    block_of = {at: place for place, elements in members.items() for at in elements}
    total = torch.zeros(layout.block_shape, dtype=torch.float64)
    for piece in itertools.product(*(data.draw(cuts(n)) for n in layout.shape)):
        offsets, sizes = [o for o, _ in piece], [n for _, n in piece]
        here = tuple(slice(o, o + n) for o, n in piece)
        shard = layout.shard(offsets, sizes)
        total += shard.sum_square(values[here])
        held = {tuple(o + i for o, i in zip(offsets, at, strict=True)) for at in np.ndindex(*sizes)}
        touched = {block_of[at] for at in held}
        assert shard.is_whole == all(held.issuperset(members[place]) for place in touched)
        expected = layout.spread(blocks).expand(layout.shape)[here]
        assert torch.equal(shard.spread(blocks).expand(sizes), expected)
    sizes = shard.block_sizes.expand(layout.block_shape)
    assert all(sizes[place] == len(elements) if elements else sizes[place] >= 1 for place, elements in members.items())
    close(total / shard.block_sizes, loop(members, layout.block_shape, values, 2), dtype)


@few
@given(layouts())
def test_plain_data(case):
    layout, members = case
    plain = layout.to_plain()
    assert BlockLayout.from_plain(plain) == layout
    assert BlockLayout.from_plain([list(p) if isinstance(p, tuple) else p for p in plain]) == layout
    assert copy.deepcopy(layout) == pickle.loads(pickle.dumps(layout)) == layout
    assert hash(BlockLayout.from_plain(plain)) == hash(layout)
    names = layout.block_names()
    assert len(names) == (layout.block_shape[layout.axis] if layout.axis is not None else 0)
    assert len(set(names)) == len(names)
    assert layout.is_per_parameter == all(len(elements) <= 1 for elements in members.values()) or not all(layout.shape)


# ---- by hand ----------------------------------------------------------------------------------------------------------------


def test_large_means_are_accurate():
    """float32 accumulation over 2 million elements, in each shape that takes a way of its own."""
    values = tensor((2**21,), "contiguous", torch.float32, 0)
    for shape in [(2**21,), (1, 2**21), (2**21, 1), (1, 1, 2**11, 2**10), (2**11, 2**10), (2, 2**10, 2**10), (64, 64, 512)]:
        expected = values.double().square().mean()
        result = BlockLayout.whole(shape).mean_square(values.view(shape))
        torch.testing.assert_close(result.double().squeeze(), expected, rtol=2e-6, atol=0)


def test_half_precision_does_not_overflow():
    values = torch.full((2, 3), 1000.0, dtype=torch.float16)
    for dims in ((), (1,), (0,), (0, 1)):
        assert BlockLayout((2, 3), dims).mean_square(values).unique().tolist() == [1e6]


@pytest.mark.parametrize(
    ("layout", "blocks", "text"),
    [
        (BlockLayout.per_parameter((4, 6)), (4, 6), "per parameter"),
        (BlockLayout.whole((4, 6)), (1, 1), "one block"),
        (BlockLayout.whole(()), (), "per parameter"),
        (BlockLayout.each_line((4, 6)), (4, 1), "mean over dim 1"),
        (BlockLayout.each_line((4, 6), -1), (1, 6), "mean over dim 0"),
        (BlockLayout.each_line((4, 6, 3, 3)), (4, 1, 1, 1), "mean over dim 1, 2, 3"),
        (BlockLayout((4, 6), [-1]), (4, 1), "mean over dim 1"),
        (BlockLayout.grouped((4, 6), "q:2x2"), (2, 1), "q:2x2 along dim 0"),
        (BlockLayout.grouped((4, 6), "q:2x3", axis=1), (1, 2), "q:2x3 along dim 1"),
        (BlockLayout.grouped((4, 6), "v:4x1"), (4, 1), "mean over dim 1"),
        (BlockLayout.grouped((4, 6), "v:4"), (1, 1), "one block"),
        (BlockLayout((4, 6), (), 0, "q:2x2"), (2, 6), "q:2x2 along dim 0"),
    ],
)
def test_shapes_and_words(layout, blocks, text):
    assert layout.block_shape == blocks
    assert str(layout) == text


def test_block_names():
    assert BlockLayout.grouped((8, 2), "q:2x2|k:1x2|v:2").block_names() == ("q.0", "q.1", "k.0", "v")
    assert BlockLayout.grouped((4, 2), "v:4x1").block_names() == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, 6), (2,)), r"Dimension 2 is out of range for a tensor of shape \(4, 6\)"),
        (((), (0,)), "Dimension 0 is out of range"),
        (((4, 6), (1,), 0), "both axis and lines or neither"),
        (((4, 6), (1,), None, "q:2x2"), "both axis and lines or neither"),
        (((4, 6), (0,), 0, "q:2x2"), "cannot group lines along dimension 0 because it also averages over it"),
        (((4, 6), (1,), 0, "q:3x2"), r"'q:3x2' has 6 lines, but dimension 0 of a tensor of shape \(4, 6\) has 4"),
        (((4, 6), (1,), 0, "q:"), "Cannot read the line order"),
        (((4, 6), (1,), 2, "q:2x2"), "Dimension 2 is out of range"),
    ],
)
def test_bad_layouts(arguments, message):
    with pytest.raises(ValueError, match=message):
        BlockLayout(*arguments)


@pytest.mark.parametrize(("offsets", "sizes"), [((0,), (4,)), ((0, 0), (5, 6)), ((-1, 0), (2, 6)), ((3, 0), (2, 6)), ((0, 0), (-1, 6))])
def test_bad_shards(offsets, sizes):
    with pytest.raises(ValueError, match=r"does not lie within a tensor of shape \(4, 6\)"):
        BlockShard(BlockLayout((4, 6)), offsets, sizes)
