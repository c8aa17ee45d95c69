"""How the kernels' programs share the work on a tensor."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.segments import EACH, ROWS, SEGMENTS, Segments, block_numbers, find_segments, memory_order


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


class Plan(NamedTuple):
    """The rows of a tensor in the kernels' tables, but for the number of the tensor.

    Attributes:
        items: For each program of ``step_blocks``: the tile's shape, first element, elements a block, number of blocks, first run.
        pieces: For each of ``step_pieces``: whether a run, first element or row, number of them, (first) block, first column, first sum.
        blocks: For each of ``finish``: block, size, first of its ``entries``, number of them.
        entries: int32 numbers of the sums of squares of these blocks, block by block.
        sums: Number of sums.
        numbers: int32 block number of each run, or of each column; on the tensor's device. None where it counts up from 0.
        order: int32 rows of the matrix, those with one first block together; on the tensor's device. None where they are.
        wide: Columns of the matrix.
        divisible: Whether every program's memory begins and ends at multiples of 8 elements.
    """

    items: Tensor
    pieces: Tensor
    blocks: Tensor
    entries: Tensor
    sums: int = 0
    numbers: Tensor | None = None
    order: Tensor | None = None
    wide: int = 0
    divisible: bool = True


@lru_cache(maxsize=65536)
def make_plan(layout: BlockLayout, strides: tuple[int, ...], device: torch.device, sizes: Sizes) -> Plan:
    """Share the work on a dense tensor of ``layout.shape`` and these strides.

    Example:
        >>> plan = make_plan(BlockLayout((4, 6), dims=(1,)), (6, 1), torch.device("cpu"), Sizes())
        >>> plan.items.tolist()
        [[4, 0, 6, 4, 0]]
    """
    segments = find_segments(layout, strides, torch.device("cpu"))
    assert segments is not None
    numel = math.prod(layout.shape)
    if segments.kind == EACH:
        start = torch.arange(0, numel, sizes.tile)
        length = (numel - start).clamp_max(sizes.tile)
        items = _table(sizes.widths + 1, start, length, 1, 0)
        return Plan(items, _none(6), _none(4), _none(1).flatten().int(), divisible=numel % 8 == 0)
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
    items, pieces, rows, sums = [_none(5)], [_none(6)], [_none(4)], 0
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
                rows.append(torch.tensor([[block, length, sums, len(each)]]))
                sums += len(each)
                start += length
        first += count
    numbers = None if torch.equal(blocks, torch.arange(len(blocks))) else blocks.to(device, torch.int32)
    return Plan(
        torch.cat(items),
        torch.cat(pieces),
        torch.cat(rows),
        torch.arange(sums, dtype=torch.int32),
        sums,
        numbers,
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
    by_base = base.argsort(stable=True)
    bases, counts = base[by_base].unique_consecutive(return_counts=True)
    chunks = []
    begin = 0
    for block, count in zip(bases.tolist(), counts.tolist(), strict=True):
        start = torch.arange(begin, begin + count, sizes.rows)
        chunks.append(_table(start, (begin + count - start).clamp_max(sizes.rows), block))
        begin += count
    chunk = torch.cat(chunks)
    wide = len(number)
    left = torch.arange(0, wide, sizes.columns)
    sums = torch.arange(len(chunk))[:, None] * wide + left
    start, length, block = (field[:, None].expand_as(sums).flatten() for field in chunk.unbind(1))
    pieces = _table(0, start, length, block, left.repeat(len(chunk)), sums.flatten())
    block_of_sum = (chunk[:, 2, None] + number).flatten()
    index = block_of_sum.argsort(stable=True)
    block, count = block_of_sum[index].unique_consecutive(return_counts=True)
    size = torch.full_like(block, numel // layout.num_blocks) if segments.size is None else segments.size.long()[block]
    return Plan(
        _none(5),
        pieces,
        _table(block, size, count.cumsum(0) - count, count),
        index.int(),
        len(index),
        None if torch.equal(number, torch.arange(wide)) else number.to(device, torch.int32),
        None if torch.equal(by_base, torch.arange(len(by_base))) else by_base.to(device, torch.int32),
        wide,
        divisible=wide % 8 == 0 and numel % 8 == 0,
    )


def _cost(layout: BlockLayout, order: tuple[int, ...], cut: int, numel: int, sizes: Sizes) -> float:
    """What the rows from dimension ``order[cut]`` on cost: memory is read in lines, and each row of a piece has sums to write and read."""
    wide = math.prod(layout.shape[d] for d in order[cut:])
    bases = math.prod(layout.block_shape[d] for d in order[:cut])
    rows = numel // wide
    sums = bases * math.ceil(rows / bases / sizes.rows) * wide
    return max(1.0, 32 / (wide if bases > 1 else max(wide, sizes.columns))) + 3 * sums / numel


def _table(*columns: Tensor | int) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*(torch.as_tensor(column) for column in columns)), dim=1)


def _none(columns: int) -> Tensor:
    return torch.empty(0, columns, dtype=torch.int64)
