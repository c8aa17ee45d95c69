"""Parameters that FSDP1 has flattened (``use_orig_params=True``): each is a flat range here, and nothing of it says of what.

In state dicts their second moments have one value per element, as FSDP's ``optim_state_dict`` demands of every tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.segments import memory_order
from lightning_adam_mini.optim.shards.part import Part, apart_in, window_of


class FlatShard(NamedTuple):
    """Which range of a parameter a rank holds.

    Attributes:
        shape: Shape of the whole parameter.
        order: Its dimensions from the outermost in memory to the innermost.
        begin: First element of the range, in the order of memory.
        end: One past the last; the same as ``begin`` where the rank holds nothing.
        group: The process group over which it is sharded.
        device: Where that group communicates.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    begin: int
    end: int
    group: Any
    device: torch.device


def is_flattened(p: Tensor) -> bool:
    """Whether FSDP1 has put a parameter into a flat one."""
    return getattr(p, "_fsdp_flattened", False)


def is_flat_parameter(p: Tensor) -> bool:
    """Whether a parameter is such a flat one itself, in which parameters cannot be told apart (``use_orig_params=False``)."""
    return getattr(p, "_is_flat_param", False)


def find_flat_shards(module: nn.Module) -> dict[Tensor, FlatShard]:
    """Which range of each parameter this rank holds, of the parameters that FSDP1 has sharded.

    Args:
        module: A module wrapped in ``FullyShardedDataParallel(use_orig_params=True)``, or one that contains such modules.

    Returns:
        Nothing for parameters that are whole here, as with ``ShardingStrategy.NO_SHARD``.

    Example:
        >>> find_flat_shards(nn.Linear(2, 2))
        {}
    """
    if not torch.distributed.is_available():
        return {}
    from torch.distributed.fsdp import FullyShardedDataParallel

    shards: dict[Tensor, FlatShard] = {}
    for wrapped in FullyShardedDataParallel.fsdp_modules(module):
        handle: Any = getattr(wrapped, "_handle", None)
        if handle is None or not handle.uses_sharded_strategy or not handle._use_orig_params:
            continue
        flat = handle.flat_param
        strides = getattr(flat, "_strides", [None] * len(flat._params))
        for p, shape, stride, info in zip(flat._params, flat._shapes, strides, flat._shard_param_infos, strict=True):
            begin, end = (info.intra_param_start_idx, info.intra_param_end_idx + 1) if info.in_shard else (0, 0)
            shards[p] = FlatShard(tuple(shape), _order(tuple(shape), stride), begin, end, handle.process_group, handle.device)
    return shards


def _order(shape: tuple[int, ...], stride: Sequence[int] | None) -> tuple[int, ...]:
    order = None if stride is None else memory_order(shape, tuple(stride))
    if order is None or list(order) == sorted(order):
        return tuple(range(len(shape)))
    return (*order, *(d for d in range(len(shape)) if d not in order))  # dimensions of length 1 lie anywhere


def flat_part(shard: FlatShard, layout: BlockLayout) -> Part:
    """What this rank holds of a parameter that FSDP1 has sharded."""
    shape, order = shard.shape, shard.order
    if layout.is_per_parameter:  # a flat tensor like any other
        n = shard.end - shard.begin
        flat = BlockLayout.per_parameter((n,))
        whole = BlockLayout.per_parameter((math.prod(shape),))
        pieces = (flat.shard((0,), (n,)),)
        return Part(whole, (True,), flat, (shard.begin,), pieces, None, (), (shard.group,), shard.device)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    rectangles = [
        ([offsets[d] for d in inverse], [sizes[d] for d in inverse])
        for offsets, sizes in _rectangles([shape[d] for d in order], shard.begin, shard.end)
    ]

    def part(margin: BlockLayout, apart: tuple[bool, ...]) -> Part:
        offsets, sizes = [0] * len(shape), list(shape)
        if shape and apart[order[0]]:
            outer = order[0]
            offsets[outer] = min((o[outer] for o, _ in rectangles), default=0)
            sizes[outer] = max((o[outer] + n[outer] for o, n in rectangles), default=0) - offsets[outer]
        window, corner = window_of(margin, apart, offsets, sizes)
        pieces = tuple(window.shard([o - c for o, c in zip(at, corner, strict=True)], n) for at, n in rectangles)
        return Part(margin, apart, window, corner, pieces, order, (shard.group,), (shard.group,), shard.device)

    first, *second = (part(margin, apart) for margin, apart in zip(layout.margins, apart_in(layout), strict=True))
    return replace(first, crossing=second[0] if second else None)


def _rectangles(shape: Sequence[int], begin: int, end: int) -> Iterator[tuple[list[int], list[int]]]:
    """Offsets and sizes of rectangles that make up a range of a contiguous tensor, in the order of memory.

    Example:
        >>> list(_rectangles([4, 3], 2, 10))
        [([0, 2], [1, 1]), ([1, 0], [2, 3]), ([3, 0], [1, 1])]
    """
    if begin >= end:
        return
    if not shape:
        yield [], []
        return
    line = math.prod(shape[1:])
    first, last = -(-begin // line), end // line
    if first > last:  # within one line
        yield from _within(shape, last, begin - last * line, end - last * line)
        return
    yield from _within(shape, first - 1, begin - (first - 1) * line, line) if begin < first * line else ()
    if first < last:
        yield [first, *(0 for _ in shape[1:])], [last - first, *shape[1:]]
    yield from _within(shape, last, 0, end - last * line) if last * line < end else ()


def _within(shape: Sequence[int], line: int, begin: int, end: int) -> Iterator[tuple[list[int], list[int]]]:
    for offsets, sizes in _rectangles(shape[1:], begin, end):
        yield [line, *offsets], [1, *sizes]
