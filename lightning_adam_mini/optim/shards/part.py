"""What one rank holds of the blocks of a sharded parameter.

A rank holds some rectangles of the tensor: one of a DTensor, up to a few of a flat range of FSDP1's. Around them lies the *window*: the
tensor, cut down to the rank's lines along dimensions that separate blocks anyway, whole along those that are averaged over or whose lines
are grouped. The window has blocks of its own, a plain :class:`~lightning_adam_mini.BlockLayout`, and a rank keeps their second moments:

- If the rectangle fills the window, no block is cut, and the parameter steps like any other, with the window's blocks.
- Else the blocks are cut, or some of them: their sums of g² are added up over ranks before the step (``reduce.py``).

Of factored blocks each margin has a window of its own. The second one's is whole along what the first averages over, because the mean that
both average to is taken of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_adam_mini._sums import second_moment_dtype
from lightning_adam_mini.block_shard import BlockShard
from lightning_adam_mini.layout import BlockLayout, cross
from lightning_adam_mini.matrix_layout import MatrixLayout


@dataclass(frozen=True, eq=False)
class Part:
    """What this rank holds of a parameter.

    Attributes:
        layout: Blocks of the whole parameter, of one margin.
        apart: For each dimension whether the window is cut down to the rank's lines along it.
        window: Blocks of the window.
        corner: Where the window begins in the tensor, and its blocks among the tensor's.
        pieces: The rectangles, as shards of the window, in the order of memory.
        order: Dimensions from the outermost in memory to the innermost, of a parameter that is one flat range here; else None.
        cutting: Process groups whose ranks may hold parts of the same blocks.
        groups: All process groups over which the parameter is sharded.
        device: Where these groups communicate.
        crossing: The same of the second margin, of a factored layout.
        matrices: Matrices that are orthogonalised, of the whole parameter; ``layout`` is that of their rows then, kept or not.
        along: The dimension along which these are cut; None if each lies on one rank.
    """

    layout: BlockLayout
    apart: tuple[bool, ...]
    window: BlockLayout
    corner: tuple[int, ...]
    pieces: tuple[BlockShard, ...]
    order: tuple[int, ...] | None
    cutting: tuple[Any, ...]
    groups: tuple[Any, ...]
    device: torch.device
    crossing: Part | None = None
    matrices: MatrixLayout | None = None
    along: int | None = None

    @property
    def margins(self) -> tuple[Part, ...]:
        """What this rank holds of each margin."""
        if self.matrices is not None and not self.matrices.margins:
            return ()
        return (self,) if self.crossing is None else (self, self.crossing)

    @cached_property
    def blocks(self) -> BlockLayout | None:
        """The blocks of all margins as a layout of what the rank holds; None if other ranks hold parts of some."""
        if not all(margin.is_uncut for margin in self.margins):
            return None
        crossed = None if self.crossing is None else self.crossing.window.dims
        here = BlockLayout(self.window.shape, self.window.dims, self.window.axis, self.window.lines, crossed)
        return here if here.is_factored == (crossed is not None) else None

    @cached_property
    def needs_all(self) -> bool:
        """Whether the step needs blocks that this rank may hold nothing of."""
        return any(keeps_apart(self.layout, d) and not apart for d, apart in enumerate(self.apart))

    @cached_property
    def is_uncut(self) -> bool:
        """Whether no block of this parameter is cut, on any rank, which the ranks know without asking."""
        return not self.cutting and len(self.pieces) == 1 and self.pieces[0].sizes == self.window.shape

    def shaped(self, local: Tensor) -> Tensor:
        """A view of what the rank holds in the shape that the arithmetic sees: a rectangle, or a flat range of several."""
        if self.order is None or len(self.pieces) != 1:
            return local
        return in_shape(local, self.pieces[0].sizes, self.order)

    def split(self, local: Tensor) -> Iterator[tuple[BlockShard, Tensor]]:
        """The rectangles with views of what the rank holds of them."""
        if self.order is None:
            yield from ((piece, local) for piece in self.pieces)
            return
        begin = 0
        for piece in self.pieces:
            end = begin + math.prod(piece.sizes)
            yield piece, in_shape(local[begin:end], piece.sizes, self.order)
            begin = end

    def sum_square(self, grad: Tensor) -> Tensor:
        """Sum of ``grad²`` over the rank's part of each block of the window."""
        return self._add([piece.sum_square(values) for piece, values in self.split(grad)], second_moment_dtype(grad.dtype), grad.device)

    def sum(self, values: Tensor) -> Tensor:
        """Sum of ``values`` over the rank's part of each block of the window, in float64."""
        return self._add([piece.sum(values) for piece, values in self.split(values)], torch.float64, values.device)

    def rms(self, sums: Tensor) -> Tensor:
        """Root mean square of each matrix, from the sum of squares over each row."""
        assert self.matrices is not None
        parts = zip(self.matrices.split(sums), self.matrices.matrices, strict=True)
        return torch.cat([one.sum(dim=(1, 2)) / (rows * columns) for one, (_, rows, columns) in parts]).sqrt_()

    def _add(self, sums: list[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
        total = sums[0] if sums else torch.zeros(self.window.block_shape, dtype=dtype, device=device)
        for more in sums[1:]:
            total = total.add_(more)
        return total

    def sizes(self, device: torch.device) -> Tensor:
        """Number of elements of each block of the window, of the whole tensor's blocks: what sums over all ranks are divided by."""
        piece = self.pieces[0] if self.pieces else self.window.shard([0] * len(self.window.shape), [0] * len(self.window.shape))
        return piece.block_sizes.to(device).expand(self.window.block_shape)

    @cached_property
    def counts(self) -> Tensor:
        """Number of the rank's elements in each block of the window; float64, on the CPU."""
        ones = torch.ones((), dtype=torch.float64)
        return self._add([piece.sum(ones.expand(piece.sizes)) for piece in self.pieces], torch.float64, ones.device)

    def spread(self, blocks: Tensor) -> Tensor:
        """Give each element that the rank holds its block's value; broadcasts to what :meth:`shaped` gives."""
        if len(self.pieces) == 1:
            return self.pieces[0].spread(blocks)
        return self.flat(blocks)

    def flat(self, blocks: Tensor) -> Tensor:
        """The same as one dense value an element, in the order of memory and in one dimension."""
        assert self.order is not None
        values = [piece.spread(blocks).expand(piece.sizes).permute(self.order).reshape(-1) for piece in self.pieces]
        return torch.cat(values) if values else blocks.new_empty(0)

    def block_slices(self) -> tuple[slice, ...]:
        """Where the window's blocks lie among the whole tensor's, in ``layout.block_shape``."""
        return tuple(slice(begin, begin + size) for begin, size in zip(self.corner, self.window.block_shape, strict=True))


@dataclass(frozen=True)
class CutBlocks:
    """The blocks of a part some of whose mean squares other ranks had to tell, in the form that the arithmetic asks for.

    Attributes:
        part: The part.
        means: The mean squares of each margin; None where no block is cut.
    """

    part: Part
    means: tuple[Tensor | None, ...]
    is_per_parameter: bool = False

    @property
    def is_factored(self) -> bool:
        """Whether two means are kept, which cross."""
        return self.part.crossing is not None

    def mean_squares(self, grad: Tensor) -> tuple[Tensor, ...]:
        """The mean squares of the gradients of all ranks; this rank's is only a part of them."""
        margins = zip(self.means, self.part.margins, strict=True)
        return tuple(margin.window.mean_square(grad) if mean is None else mean for mean, margin in margins)

    def spread(self, blocks: Tensor) -> Tensor:
        """The rank's part of what the blocks spread to."""
        return self.part.spread(blocks)

    def roots(self, blocks: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The rank's part of the factors of the root of each element's second moment."""
        margins = self.part.margins
        if len(margins) == 1:
            return (self.spread(blocks[0].sqrt()),)
        factors = cross([margin.layout for margin in margins], blocks)
        return tuple(margin.spread(factor.sqrt()) for margin, factor in zip(margins, factors, strict=True))

    def over(self, shape: tuple[int, ...]) -> tuple[BlockLayout, ...] | None:
        """How each factor of :meth:`roots` lies over what the rank holds: as a layout's means would; None if that is no rectangle.

        Args:
            shape: Of what the rank holds.
        """
        if len(self.part.pieces) != 1:
            return None
        return tuple(BlockLayout(shape, margin.layout.dims) for margin in self.part.margins)

    def advance(self, moments: Sequence[Tensor], grad: Tensor, beta2: float) -> tuple[Tensor, ...]:
        """Take the step's mean squares into the moments, for a backend that only updates.

        Args:
            moments: What is kept of each margin, updated.
            grad: The rank's gradient, with decay that is not decoupled in it.
            beta2: Decay of the second moments.

        Returns:
            What :meth:`roots` gives of them.
        """
        for moment, mean in zip(moments, self.mean_squares(grad), strict=True):
            moment.mul_(beta2).add_(mean, alpha=1 - beta2)
        return self.roots(moments)


def in_shape(flat: Tensor, sizes: Sequence[int], order: Sequence[int]) -> Tensor:
    """A view of what is flat in its shape.

    Args:
        flat: The elements in the order of memory.
        sizes: The shape.
        order: Its dimensions from the outermost in memory to the innermost.
    """
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return flat.view([sizes[d] for d in order]).permute(inverse)


def keeps_apart(layout: BlockLayout, dim: int) -> bool:
    """Whether different lines along a dimension are always in different blocks."""
    return dim not in layout.dims and dim != layout.axis


def apart_in(layout: BlockLayout) -> tuple[tuple[bool, ...], ...]:
    """For each margin and dimension whether its window is cut down to the rank's lines: see the top of this module."""
    dims = range(len(layout.shape))
    first, *second = layout.margins
    kept = tuple(keeps_apart(first, d) for d in dims)
    return (kept, *(tuple(keeps_apart(margin, d) and kept[d] for d in dims) for margin in second))


def window_of(
    layout: BlockLayout, apart: Sequence[bool], offsets: Sequence[int], sizes: Sequence[int]
) -> tuple[BlockLayout, tuple[int, ...]]:
    """The window around a rectangle, and its corner.

    Args:
        layout: Blocks of the whole parameter, of one margin.
        apart: For each dimension whether the window is cut down to the rectangle.
        offsets: Where the rectangle begins.
        sizes: Its sizes.
    """
    shape = tuple(n if cut else size for cut, n, size in zip(apart, sizes, layout.shape, strict=True))
    corner = tuple(o if cut else 0 for cut, o in zip(apart, offsets, strict=True))
    return BlockLayout(shape, layout.dims, layout.axis, layout.lines), corner
