"""How the kernels' programs share the work on a tensor."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.codecs import leading_dims, row_of
from lightning_adam_mini.optim.segments import EACH as EVERY
from lightning_adam_mini.optim.segments import ROWS, SEGMENTS, Segments, block_numbers, find_segments, memory_order, order_in_rows

LINES = 64
"""Rows or columns of a program of ``finish_lines``."""

EACH, ONE, ROOT, ROOTS, CROSSED = range(5)
"""What ``update_coded`` makes its divisors of: second moments of elements, those of blocks, one root or two, or blocks that cross."""

RUNS = 16, 64, 256
"""Columns of its tiles; the last is the length of a run of a long row (``codecs.EightBit``)."""

PLACE, COUNTING = 3, 1
"""Where in the tables of ``update_coded`` those of the factors are, and what stands for columns that count up from 0."""


class Sizes(NamedTuple):
    """How much a program does.

    Attributes:
        tile: Elements that it holds at once; a power of 4.
        widths: Shapes of tiles of rows: ``4**k`` rows of ``tile / 4**k`` elements for each ``k`` below this.
        block: Elements of the largest block that it steps alone, reading the gradient a second time from cache.
        run: Elements of a piece of a larger block.
        columns: Columns of a tile of a matrix; a power of 2.
        rows: Rows of a piece of a matrix.
    """

    tile: int = 4096
    widths: int = 5
    block: int = 65536
    run: int = 16384
    columns: int = 128
    rows: int = 256


def _none(columns: int) -> Tensor:
    return torch.empty(0, columns, dtype=torch.int64)


class Plan(NamedTuple):
    """The rows of a tensor in the kernels' tables, but for the number of the tensor.

    Attributes:
        items: For each program of ``step_blocks``: the tile's shape, first element, elements a block, number of blocks, first run.
        pieces: For each of ``step_pieces``: whether a run, first element or row, number of them, (first) block, first column, first sum.
        blocks: For each of ``finish``: its margin, block, size, first of its ``entries``, number of them, 0.
        entries: int32 numbers of the sums of squares of these blocks, block by block; of ``means``, numbers of blocks.
        sums: Number of sums.
        numbers: int32 block number of each run, or of each column; on the tensor's device. None where it counts up from 0. Of ``updates``,
            that of each column and then of each row of the matrix, in the root's first factor.
        order: int32 rows of the matrix, those with one first block together; on the tensor's device. None where they are. Of ``updates``,
            as ``numbers``, of the second factor.
        wide: Columns of the matrix.
        divisible: Whether every program's memory begins and ends at multiples of 8 elements.
        tiles: For each program of ``step_tiles``: first row, number of rows, first column, first block of columns, where the mean of both
            margins is, first sum of a row, first sum of a column.
        lines: For each of ``finish_lines``: margin, first row or column, number of them, what is added to their block numbers, first sum,
            distance and number of the sums of each, size of each block.
        means: For each of ``average``: margin, where the mean goes, number of blocks, first of their ``entries``, number of them, 0.
        row_numbers: int32 block number of each row of a factored tensor's matrix, in the order of ``order``; on the tensor's device. None
            where it counts up from 0.
        columns: Columns of a tile.
        swapped: Whether rows are blocks of the second margin; margin 0 of the tables is that of rows.
        apart: Of how many rows elements lie in turns, which is the distance of the elements of one.
        updates: For each program of ``update_tiles``: first row, number of rows, first column.
        coded: For each program of ``update_coded``: first run, number of runs, where the means of both margins are.
        tables: int32 tables of that tensor, on its device: elements of a row, runs of a row, where the order of elements in a row is (0 if
            there is none), and for each factor where the blocks of rows are, and where those of columns are (0 if all are 0).
        kind: What its divisors are made of.
        run: Columns of its tiles: as many as elements with one scale, or more.
    """

    items: Tensor = _none(5)
    pieces: Tensor = _none(6)
    blocks: Tensor = _none(6)
    entries: Tensor = _none(1).flatten().int()
    sums: int = 0
    numbers: Tensor | None = None
    order: Tensor | None = None
    wide: int = 0
    divisible: bool = True
    tiles: Tensor = _none(7)
    lines: Tensor = _none(8)
    means: Tensor = _none(6)
    row_numbers: Tensor | None = None
    columns: int = 0
    swapped: bool = False
    apart: int = 1
    updates: Tensor = _none(3)
    coded: Tensor = _none(3)
    tables: Tensor | None = None
    kind: int = ONE
    run: int = 0


@lru_cache(maxsize=65536)
def make_plan(layout: BlockLayout, strides: tuple[int, ...], device: torch.device, sizes: Sizes) -> Plan:
    """Share the work on a dense tensor of ``layout.shape`` and these strides.

    Example:
        >>> plan = make_plan(BlockLayout((4, 6), dims=(1,)), (6, 1), torch.device("cpu"), Sizes())
        >>> plan.items.tolist()
        [[4, 0, 6, 4, 0]]
    """
    if layout.is_factored:
        return _plan_crossed(layout, strides, device, sizes)
    segments = find_segments(layout, strides, torch.device("cpu"))
    assert segments is not None
    numel = math.prod(layout.shape)
    if segments.kind == EVERY:
        start = torch.arange(0, numel, sizes.tile)
        length = (numel - start).clamp_max(sizes.tile)
        items = _table(sizes.widths + 1, start, length, 1, 0)
        return Plan(items, divisible=numel % 8 == 0)
    runs = _contiguous(segments, layout, numel)
    return _plan_matrix(layout, strides, device, sizes, segments) if runs is None else _plan_runs(*runs, device, sizes)


def _contiguous(segments: Segments, layout: BlockLayout, numel: int) -> tuple[Tensor, Tensor] | None:
    """Block number and length of each block, in the order of memory; None if the elements of some block lie apart."""
    if segments.kind == ROWS:
        return torch.arange(layout.num_blocks), torch.full((layout.num_blocks,), segments.length)
    if segments.kind != SEGMENTS:
        return None
    if segments.segment is None:
        return torch.zeros(1, dtype=torch.int64), torch.tensor([numel])
    blocks, counts = segments.segment.unique_consecutive(return_counts=True)
    return (blocks.long(), counts * segments.length) if len(blocks) == layout.num_blocks else None


def _plan_runs(blocks: Tensor, lengths: Tensor, device: torch.device, sizes: Sizes) -> Plan:
    starts = lengths.cumsum(0) - lengths
    items, pieces, rows, sums = [_none(5)], [_none(6)], [_none(6)], 0
    stretch_lengths, counts = lengths.unique_consecutive(return_counts=True)
    first = 0
    for length, count in zip(stretch_lengths.tolist(), counts.tolist(), strict=True):
        start = int(starts[first])
        if length <= sizes.tile:
            width = max(k for k in range(sizes.widths) if length <= sizes.tile // 4**k)
            run = torch.arange(first, first + count, 4**width)
            items.append(_table(width, start + (run - first) * length, length, (first + count - run).clamp_max(4**width), run))
        elif length <= sizes.block:
            run = torch.arange(first, first + count)
            items.append(_table(sizes.widths, start + (run - first) * length, length, 1, run))
        else:
            each = torch.arange(0, length, sizes.run)
            for block in blocks[first : first + count].tolist():
                pieces.append(_table(1, start + each, (length - each).clamp_max(sizes.run), block, 0, sums + torch.arange(len(each))))
                rows.append(torch.tensor([[0, block, length, sums, len(each), 0]]))
                sums += len(each)
                start += length
        first += count
    return Plan(
        torch.cat(items),
        torch.cat(pieces),
        torch.cat(rows),
        torch.arange(sums, dtype=torch.int32),
        sums,
        _unless_counting(blocks, device),
        divisible=not bool((lengths % 8).any()) and sizes.run % 8 == 0,
    )


def _plan_matrix(layout: BlockLayout, strides: tuple[int, ...], device: torch.device, sizes: Sizes, segments: Segments) -> Plan:
    """The tensor as a matrix whose element ``(r, c)`` belongs to block ``base[r] + number[c]``: rows of the last few dimensions."""
    order = memory_order(layout.shape, strides)
    assert order is not None
    numel = math.prod(layout.shape)
    cut = min(range(len(order)), key=lambda k: _cost(layout, order, k, numel, sizes))
    base, number = block_numbers(layout, order[:cut]).long(), block_numbers(layout, order[cut:]).long()
    if not bool(base.any()) and len(number) < sizes.columns:
        fold = min(len(base), -(-sizes.columns // len(number)))  # several short rows are one long row
        number, base = number.repeat(fold), base[: -(-len(base) // fold)]
    by_base, chunk = _chunks(base, sizes.rows)
    wide = len(number)
    left = torch.arange(0, wide, sizes.columns)
    sums = torch.arange(len(chunk))[:, None] * wide + left
    start, length, block = (field[:, None].expand_as(sums).flatten() for field in chunk.unbind(1))
    pieces = _table(0, start, length, block, left.repeat(len(chunk)), sums.flatten())
    block, first, count, index = _by_block((chunk[:, 2, None] + number).flatten())
    size = torch.full_like(block, numel // layout.num_blocks) if segments.size is None else segments.size.long()[block]
    return Plan(
        pieces=pieces,
        blocks=_table(0, block, size, first, count, 0),
        entries=index,
        sums=len(index),
        numbers=_unless_counting(number, device),
        order=_unless_counting(by_base, device),
        wide=wide,
        divisible=wide % 8 == 0 and numel % 8 == 0,
    )


def _plan_crossed(layout: BlockLayout, strides: tuple[int, ...], device: torch.device, sizes: Sizes) -> Plan:
    """The tensor as a matrix whose row ``r`` is in block ``line[r]`` of a margin; the other has ``(r, c)`` in ``base[r] + number[c]``."""
    order = memory_order(layout.shape, strides)
    assert order is not None
    numel = math.prod(layout.shape)
    # What both means keep along the innermost dimensions in memory tells rows apart; of the dimension before, one of them is taken.
    end = next(i for i in range(len(order), 0, -1) if any(order[i - 1] in margin.dims for margin in layout.margins))
    ways = [
        (cut, margin) for margin, rows in enumerate(layout.margins) for cut in range(1, end) if all(d in rows.dims for d in order[cut:end])
    ]

    def cost(cut: int, margin: int) -> float:
        outer, wide = order[:cut] + order[end:], math.prod(layout.shape[d] for d in order[cut:end])
        rows, bases = numel // wide, math.prod(layout.margins[1 - margin].block_shape[d] for d in outer)
        across = math.ceil(wide / _tile_columns(wide, sizes))
        sums = rows * across + bases * math.ceil(rows / bases / sizes.rows) * wide
        return rows * across * _tile_columns(wide, sizes) / numel + 3 * sums / numel

    cut, margin = min(ways, key=lambda way: cost(*way))
    rows, others = layout.margins[margin], layout.margins[1 - margin]
    common = BlockLayout(layout.shape, tuple({*layout.dims, *(layout.crossed or ())}))
    line, base, both = (block_numbers(each, order[:cut] + order[end:]).long() for each in (rows, others, common))
    number = block_numbers(others, order[cut:end]).long()
    by_base, chunk = _chunks(base, sizes.rows)
    line, both, height, wide = line[by_base], both[by_base], len(line), len(number)
    columns = _tile_columns(wide, sizes)
    left = torch.arange(0, wide, columns)
    # Row by row for each tile of columns, then column by column for each chunk, then the means.
    column_sums, means = len(left) * height, len(left) * height + len(chunk) * wide
    start, length, base = chunk.unbind(1)
    tiles = torch.cat(
        [
            _table(start, length, x, base, means + both[start], i * height + start, column_sums + torch.arange(len(chunk)) * wide + x)
            for i, x in enumerate(left.tolist())
        ]
    )
    lines, blocks, entries = [_none(8)], [_none(6)], []
    # An ordinary row or column is a block. What groups them, or repeats them along the kernel of a convolution, needs lists.
    if len(line.unique()) == height:
        lines.append(_lines(0, height, 0, 0, height, len(left), wide))
    else:
        block, first, count, index = _by_block(line.repeat(len(left)))
        size = torch.bincount(line)[block] * wide
        blocks.append(_table(0, block, size, first, count, 0))
        entries.append(index)
    listed = sum(map(len, entries))
    bases, chunks = base.unique_consecutive(return_counts=True)
    if len(number.unique()) == wide:
        sums = column_sums
        for block, count, size in zip(bases.tolist(), chunks.tolist(), length.split(chunks.tolist()), strict=True):
            lines.append(_lines(1, wide, block, sums, wide, count, int(size.sum())))
            sums += count * wide
    else:
        of_sum = (base[:, None] + number).flatten()
        block, first, count, index = _by_block(of_sum)
        size = torch.zeros(int(of_sum.max()) + 1, dtype=torch.int64).index_add_(0, of_sum, length.repeat_interleave(wide))[block]
        blocks.append(_table(1, block, size, listed + first, count, 0))
        entries.append(index + column_sums)
        listed += len(index)
    second = layout.margins[1].block_shape
    of_block = block_numbers(BlockLayout(second, common.dims), tuple(range(len(second))))
    block, first, count, index = _by_block(of_block.long())
    entries.append(index)
    return Plan(
        blocks=torch.cat(blocks),
        entries=torch.cat(entries),
        sums=means + len(block),
        numbers=_unless_counting(number, device),
        order=_unless_counting(by_base, device),
        wide=wide,
        divisible=wide % 8 == 0 and numel % 8 == 0 and end == len(order),
        tiles=tiles,
        lines=torch.cat(lines),
        means=_table(1 - margin, means + block, count, listed + first, count, 0),
        row_numbers=_unless_counting(line, device),
        columns=columns,
        swapped=margin == 1,
        apart=math.prod(layout.shape[d] for d in order[end:]),
    )


@lru_cache(maxsize=65536)
def plan_update(factors: tuple[BlockLayout, ...], strides: tuple[int, ...], device: torch.device, sizes: Sizes) -> Plan:
    """Share the update of a dense tensor whose roots of second moments are known.

    Args:
        factors: How each factor of the roots lies over the tensor, as blocks.
        strides: The tensor's strides.
        device: Where it is.
        sizes: How much a program does.
    """
    shape = factors[0].shape
    order = memory_order(shape, strides)
    assert order is not None
    numel = math.prod(shape)

    def cost(cut: int) -> float:
        wide = math.prod(shape[d] for d in order[cut:])
        return math.ceil(wide / _tile_columns(wide, sizes)) * _tile_columns(wide, sizes) / wide + (wide + numel // wide) / numel

    cut = min(range(len(order) or 1), key=cost)
    wide = math.prod(shape[d] for d in order[cut:])
    columns = _tile_columns(wide, sizes)
    most = sizes.run // columns
    start, left = torch.arange(0, numel // wide, most)[:, None], torch.arange(0, wide, columns)
    updates = _table(*(field.flatten() for field in torch.broadcast_tensors(start, (numel // wide - start).clamp_max(most), left)))
    numbers = [torch.cat([block_numbers(factor, dims) for dims in (order[cut:], order[:cut])]).to(device) for factor in factors]
    return Plan(
        numbers=numbers[0],
        order=numbers[1] if len(numbers) > 1 else None,
        wide=wide,
        divisible=wide % 8 == 0,
        columns=columns,
        updates=updates,
    )


@lru_cache(maxsize=65536)
def plan_coded(blocks: BlockLayout | tuple[BlockLayout, ...], strides: tuple[int, ...], device: torch.device, sizes: Sizes) -> Plan:
    """Share the work on a dense tensor whose first moment is kept in codes.

    Args:
        blocks: Its blocks; or how each factor of the roots lies over it, if these are known.
        strides: Its strides.
        device: Where it is.
        sizes: How much a program does.

    Raises:
        ValueError: If the rows that have scales do not lie one after the other in memory.
    """
    if isinstance(blocks, BlockLayout):
        plan, factors = make_plan(blocks, strides, device, sizes), [*blocks.margins]
        kind = ONE
        if blocks.is_factored:
            kind = CROSSED
            if plan.swapped:
                factors.reverse()
            factors.append(BlockLayout(blocks.shape, tuple({*blocks.dims, *(blocks.crossed or ())})))
        elif blocks.num_blocks == math.prod(blocks.shape):
            plan, kind, factors = Plan(), EACH, []
    else:
        plan, factors = Plan(), [*blocks]
        kind = ROOTS if len(factors) > 1 else ROOT
    shape = (blocks if isinstance(blocks, BlockLayout) else blocks[0]).shape
    leading, wide = leading_dims(shape), row_of(shape)
    columns = next(run for run in RUNS if run >= min(wide, RUNS[-1]))
    across = -(-wide // columns)
    tables = [torch.zeros(16, dtype=torch.int32)]

    def add(table: Tensor) -> int:
        tables.append(torch.nn.functional.pad(table, (0, -len(table) % 8)))  # so that several numbers are read at once
        return sum(map(len, tables[:-1]))

    order = order_in_rows(shape, strides, leading)
    head = [wide, across, 0 if order is None else add(order.argsort().int())]
    for factor in factors:
        rows, line = (block_numbers(factor, tuple(dims)) for dims in (range(leading), range(leading, len(shape))))
        counting = torch.equal(line, torch.arange(wide, dtype=torch.int32))
        head += [add(rows), (COUNTING if counting else add(line)) if line.any() else 0]
    tables[0][: len(head)] = torch.tensor(head, dtype=torch.int32)
    runs, most = math.prod(shape) // wide * across, max(sizes.run // columns, 1)
    start = torch.arange(0, runs, most)
    means = plan.sums - factors[-1].num_blocks if kind == CROSSED else 0
    return plan._replace(
        coded=_table(start, (runs - start).clamp_max(most), means),
        tables=torch.cat(tables).to(device),
        kind=kind,
        run=columns,
        divisible=plan.divisible and wide % 8 == 0 and order is None,
    )


def _tile_columns(wide: int, sizes: Sizes) -> int:
    """Columns of a tile of a factored matrix: more than otherwise, because each row of it has a sum, and few where there are few."""
    return 2 * sizes.columns if 2 * wide > sizes.columns else sizes.columns // 4


def _lines(margin: int, number: int, base: int, sums: int, apart: int, count: int, size: int) -> Tensor:
    first = torch.arange(0, number, LINES)
    return _table(margin, first, (number - first).clamp_max(LINES), base, sums + first, apart, count, size)


def _chunks(base: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Rows in the order of their bases; and chunks of no more than so many rows with one base: first row, number of rows, base."""
    by_base = base.argsort(stable=True)
    bases, counts = base[by_base].unique_consecutive(return_counts=True)
    chunks, begin = [], 0
    for block, count in zip(bases.tolist(), counts.tolist(), strict=True):
        start = torch.arange(begin, begin + count, most)
        chunks.append(_table(start, (begin + count - start).clamp_max(most), block))
        begin += count
    return by_base, torch.cat(chunks)


def _by_block(block_of_each: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The blocks, where the list of each begins, how long it is, and the lists."""
    index = block_of_each.argsort(stable=True)
    block, count = block_of_each[index].unique_consecutive(return_counts=True)
    return block, count.cumsum(0) - count, count, index.int()


def _unless_counting(numbers: Tensor, device: torch.device) -> Tensor | None:
    return None if torch.equal(numbers, torch.arange(len(numbers))) else numbers.to(device, torch.int32)


def _cost(layout: BlockLayout, order: tuple[int, ...], cut: int, numel: int, sizes: Sizes) -> float:
    """What the rows from dimension ``order[cut]`` on cost: memory is read in lines, and each row of a piece has sums to write and read."""
    wide = math.prod(layout.shape[d] for d in order[cut:])
    bases = math.prod(layout.block_shape[d] for d in order[:cut])
    rows = numel // wide
    sums = bases * math.ceil(rows / bases / sizes.rows) * wide
    return max(1.0, 32 / (wide if bases > 1 else max(wide, sizes.columns))) + 3 * sums / numel


def _table(*columns: Tensor | int) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*(torch.as_tensor(column) for column in columns)), dim=1)
