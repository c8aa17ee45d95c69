"""How the blocks of a layout lie in memory: what the fast steps work on."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout

EACH, ROWS, SEGMENTS, COLUMNS, CROSSED = range(5)
_LONG = 256  # elements of one block that are worth a loop of their own


class Segments(NamedTuple):
    """A dense tensor as runs of ``length`` elements, in the order of its memory.

    Attributes:
        kind: ``EACH``: every element is a block, with second moments in the same order. ``ROWS``: every run is a block. ``SEGMENTS``: run
            ``s`` belongs to block ``segment[s]``. ``COLUMNS``: element ``c`` of it is of column ``segment[s] + c``, and column ``i`` is of
            block ``column[i]``. ``CROSSED``, of factored layouts: the same of one margin; of the other, block ``line[s] + across[c]``.
        length: Elements of a run.
        segment: int32 table of runs, on the layout's device; None where all are 0, or for ``ROWS`` and ``EACH``.
        column: int32 table of columns; None where it counts up from 0.
        size: float64 number of elements of each block of the (first) margin; None where all blocks have the same.
        line: int32 table of runs; None where it counts up from 0 or, if there is ``across``, all are 0.
        across: int32 table of the elements of a run; None where all are 0, which is much faster.
        common: int32 table of the blocks of both margins: the number of the block of their common, coarser mean; None if there is one.
        turned: Whether the columns are those of the first margin, and not of the second.
    """

    kind: int
    length: int
    segment: Tensor | None = None
    column: Tensor | None = None
    size: Tensor | None = None
    line: Tensor | None = None
    across: Tensor | None = None
    common: Tensor | None = None
    turned: bool = False


def memory_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """Dimensions from the outermost in memory to the innermost, without those of length 1; None if elements overlap or leave gaps.

    Example:
        >>> image = torch.empty(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
        >>> memory_order(image.shape, image.stride())
        (0, 2, 3, 1)
    """
    order = sorted((d for d, size in enumerate(shape) if size != 1), key=lambda d: -strides[d])
    expected = 1
    for d in reversed(order):
        if strides[d] != expected:
            return None
        expected *= shape[d]
    return tuple(order)


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape keep their elements in the same order, whatever the strides of dimensions of length 1."""
    return memory_order(tuple(a.shape), a.stride()) == memory_order(tuple(b.shape), b.stride())


def in_memory_of(p: Tensor, grad: Tensor) -> Tensor:
    """A gradient whose memory can be read beside its parameter's: itself, or a copy in the parameter's dtype and memory order."""
    if (
        grad.dtype == p.dtype
        and (grad.stride() == p.stride() or same_memory(grad, p))
        and not grad.is_neg()  # the memory then holds the opposite: autograd makes such gradients of conjugated numbers
        and not grad._is_zerotensor()
    ):
        return grad
    return torch.empty_like(p).copy_(grad)


def put_in_order(p: Tensor, state: MutableMapping[str, Tensor]) -> None:
    """Put what a parameter's state has per element into its memory order: it may come from a run with another memory format."""
    strides, shape = p.stride(), p.shape
    if p.numel() > 1:
        for name, kept in state.items():
            if kept.shape == shape and kept.stride() != strides and not same_memory(kept, p):
                state[name] = torch.empty_like(p, dtype=kept.dtype).copy_(kept)


@lru_cache(maxsize=65536)
def order_in_rows(shape: tuple[int, ...], strides: tuple[int, ...], leading: int) -> Tensor | None:
    """The place in its row of each element of a row, as rows lie in memory; None if in the order of the indices.

    Args:
        shape: Shape of a dense tensor.
        strides: Its strides.
        leading: How many of its first dimensions tell rows apart.

    Returns:
        An int32 table, the same for all rows.

    Raises:
        ValueError: If rows do not lie one after the other.

    Example:
        >>> image = torch.empty(2, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        >>> order_in_rows(image.shape, image.stride(), 1).tolist()
        [0, 2, 4, 1, 3, 5]
    """
    order = memory_order(shape, strides)
    assert order is not None
    outer = [d for d in range(leading) if shape[d] != 1]
    inner = list(order[len(outer) :])
    if list(order[: len(outer)]) != outer or (not leading and inner != sorted(inner)):
        raise ValueError("its rows do not lie one after the other in memory")
    if inner == sorted(inner):
        return None
    places = torch.arange(math.prod(shape[leading:]), dtype=torch.int32).view(shape[leading:])
    rest = [d - leading for d in inner]
    return places.permute(*rest, *(d for d in range(places.ndim) if d not in rest)).reshape(-1).contiguous()


@lru_cache(maxsize=65536)
def find_segments(layout: BlockLayout, strides: tuple[int, ...], device: torch.device) -> Segments | None:
    """The segments of a tensor of ``layout.shape`` with these strides, or None if it is empty or not dense.

    Example:
        >>> find_segments(BlockLayout((4, 6), dims=(1,)), (6, 1), torch.device("cpu"))[:2]
        (1, 6)
    """
    order = memory_order(layout.shape, strides)
    numel = math.prod(layout.shape)
    if order is None or numel == 0:
        return None
    if layout.is_factored:
        return _find_crossed(layout, order, device)
    if layout.num_blocks == numel:
        return Segments(EACH, 1)
    sizes = _block_sizes(layout, device)
    inner = next((i for i in range(len(order) + 1) if all(d in layout.dims for d in order[i:])), len(order))
    if inner < len(order) or not order:
        length = _run(layout, order, inner)
        table = block_numbers(layout, order[:inner])
        if layout.num_blocks == 1:
            return Segments(SEGMENTS, length, None, None, sizes)
        if torch.equal(table, torch.arange(numel // length, dtype=torch.int32)):
            return Segments(ROWS, length, None, None, sizes)
        if length >= _LONG or len(table.unique_consecutive()) == layout.num_blocks:
            return Segments(SEGMENTS, length, table.to(device), None, sizes)
        inner = _cut(layout, order)
        return Segments(COLUMNS, _run(layout, order, inner), *_find_columns(layout, order, inner, device), sizes)
    inner = next(i for i in range(len(order) + 1) if not any(d in layout.dims for d in order[i:]))
    return Segments(COLUMNS, _run(layout, order, inner), *_find_columns(layout, order, inner, device), sizes)


def _run(layout: BlockLayout, order: tuple[int, ...], cut: int) -> int:
    """Elements of a run of the dimensions ``order[cut:]``."""
    return math.prod(layout.shape[d] for d in order[cut:])


def _cut(layout: BlockLayout, order: tuple[int, ...]) -> int:
    """Where to cut the dimensions so that there are few runs and few columns."""

    def cost(cut: int) -> int:
        bases = math.prod(layout.block_shape[d] for d in order[:cut])
        return _run(layout, order, 0) // _run(layout, order, cut) + bases * _run(layout, order, cut)

    return min(range(len(order)), key=cost)


def _find_crossed(layout: BlockLayout, order: tuple[int, ...], device: torch.device) -> Segments:
    """Runs as long as all of their elements are of one block of a margin; if there are none, so that the tables are short."""
    first, second = layout.margins
    cuts = [next(i for i in range(len(order) + 1) if all(d in margin.dims for d in order[i:])) for margin in (first, second)]
    cut, turned = min(cuts), cuts[1] < cuts[0]
    across = None
    if cut == len(order):
        cut = _cut(second, order)
        across = block_numbers(first, order[cut:]).to(device)
    lines, columns = (second, first) if turned else (first, second)
    line = block_numbers(lines, order[:cut])
    counts = across is None and torch.equal(line, torch.arange(lines.num_blocks, dtype=torch.int32))
    both = BlockLayout(layout.shape, tuple({*first.dims, *second.dims}))
    common = None
    if both.num_blocks > 1:
        numbers = torch.arange(both.num_blocks, dtype=torch.int32).view(both.block_shape)
        common = torch.cat([numbers.expand(margin.block_shape).flatten() for margin in layout.margins]).to(device)
    tables = (*_find_columns(columns, order, cut, device), _block_sizes(first, device))
    return Segments(CROSSED, _run(layout, order, cut), *tables, None if counts else line.to(device), across, common, turned)


def _find_columns(layout: BlockLayout, order: tuple[int, ...], cut: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """The first column of each run of the dimensions ``order[cut:]``, and the block of each column."""
    # Block numbers are sums of one term per dimension, so a run's first block and the steps within a run tell all.
    starts, run = block_numbers(layout, order[:cut]).unique(return_inverse=True)
    steps = block_numbers(layout, order[cut:])
    column = (starts[:, None] + steps).flatten()
    counts = torch.equal(column, torch.arange(len(column), dtype=torch.int32))
    return (run * len(steps)).to(device, torch.int32) if len(starts) > 1 else None, None if counts else column.to(device)


def _block_sizes(layout: BlockLayout, device: torch.device) -> Tensor | None:
    size = layout._block_sizes(torch.device("cpu"))
    return None if isinstance(size, int) else size.expand(layout.block_shape).reshape(-1).to(device, torch.float64)


def block_numbers(layout: BlockLayout, dims: tuple[int, ...]) -> Tensor:
    """Block number at each place along ``dims``, outermost first, with the others at 0."""
    numbers = layout.spread(torch.arange(layout.num_blocks, dtype=torch.int32).view(layout.block_shape))
    for d in range(numbers.ndim):
        if d not in dims:
            numbers = numbers.narrow(d, 0, 1)
    numbers = numbers.permute(*dims, *(d for d in range(numbers.ndim) if d not in dims))
    return numbers.reshape(numbers.shape[: len(dims)]).expand([layout.shape[d] for d in dims]).reshape(-1).contiguous()


def overlaps(t: Tensor) -> bool:
    """Whether elements share memory, as in what ``expand`` returns."""
    return any(stride == 0 and size > 1 for size, stride in zip(t.shape, t.stride(), strict=True))


def is_held(t: Tensor) -> bool:
    """Whether the memory of a tensor on a device that has any is all there: storages can be freed and cut under tensors."""
    if t.is_meta or t.numel() == 0:
        return True
    last = t.storage_offset() + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return bool((last + 1) * t.element_size() <= t.untyped_storage().nbytes())
