"""Block layouts: which elements of a tensor share a second moment.

Adam keeps a second moment for each element; Adam-mini, AdaLayer and SlimAdam keep one for each *block* of elements, the mean of g² over
it. A :class:`BlockLayout` is the description of one tensor's blocks, as plain data:

- ``BlockLayout((4, 6))`` averages over nothing. Each element is a block: Adam.
- ``BlockLayout((4, 6), dims=(1,))`` averages over the second dimension. Each row is a block, 4 in all: an output neuron, a token.
- ``BlockLayout((4, 6), dims=(1,), axis=0, lines="q:2x2")`` averages each row and then the rows that belong together. Rows 0 and 1 are
  the first block and rows 2 and 3 the second: two heads.
- ``BlockLayout((4, 6), dims=(1,), crossed=(0,))`` keeps the mean of each row *and* of each column: it is *factored* into two *margins*,
  4 + 6 numbers. An element's second moment is its row's mean times its column's over the mean of all, which is what the means say if
  nothing else is assumed (Adafactor, arXiv 1804.04235).

Blocks live in a tensor of ``block_shape``: the averaged dimensions are 1 long, and the dimension ``axis`` has one entry for each group of
lines. ``average`` goes from the tensor to its blocks, ``spread`` goes back by broadcasting. Nothing else in this package reshapes a
gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any

import torch
from torch import Tensor

from lightning_adam_mini._sums import (
    all_finite,
    group_index,
    group_names,
    scale_down,
    scale_squares_up,
    second_moment_dtype,
    sum_groups,
    sum_square,
)
from lightning_adam_mini.block_shard import BlockShard
from lightning_adam_mini.lines import parse_lines, shorten


@dataclass(frozen=True)
class BlockLayout:
    """The blocks of one tensor, each of which shares one second moment.

    Args:
        shape: Shape of the (unsharded) tensor.
        dims: Dimensions that are averaged over. Negative ones count from the end.
        axis: Dimension whose lines are grouped by ``lines``, not one of ``dims``; None if each of its lines is a block of its own.
        lines: The groups along ``axis`` in the language of :mod:`lightning_adam_mini.lines`: each head is a block, and so are all the
            lines of a role that have no head.
        crossed: Dimensions that a second mean averages over, ``axis`` among them if there is one; None for one mean. Where that saves
            nothing, as for a vector, or one mean follows from the other, the finer one is kept alone.

    Raises:
        ValueError: If the dimensions are not the tensor's, the lines do not add up to its length along ``axis``, or the second mean does
            not average over ``axis``.

    Example:
        >>> layout = BlockLayout((12, 5), dims=(1,), axis=0, lines="q:2x2|k:2x2|v:4x1")
        >>> layout.num_blocks, layout.block_shape
        (8, (8, 1))
        >>> layout.average(torch.ones(12, 5)).shape, layout.spread(torch.ones(8, 1)).shape
        (torch.Size([8, 1]), torch.Size([12, 1]))
        >>> factored = BlockLayout((12, 5), dims=(1,), crossed=(0,))
        >>> factored.num_blocks, [margin.block_shape for margin in factored.margins]
        (17, [(12, 1), (1, 5)])
    """

    shape: tuple[int, ...]
    dims: tuple[int, ...] = ()
    axis: int | None = None
    lines: str | None = None
    crossed: tuple[int, ...] | None = None
    block_shape: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Shape of the tensor of blocks: as many dimensions as ``shape``, and broadcastable to it unless lines are grouped. Of a factored
    layout, that of its first margin."""
    _crossing: tuple[BlockLayout, ...] = field(init=False, repr=False, compare=False)
    _asked: tuple[tuple[int, ...], int | None, str | None, tuple[int, ...]] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            shape = tuple(index(size) for size in self.shape)
            dims = sorted({self._dimension(index(d), shape) for d in self.dims})
            crossed = None if self.crossed is None else sorted({self._dimension(index(d), shape) for d in self.crossed})
        except TypeError:
            wrong = f"{self.shape!r} and {self.dims!r}" + (f" and {self.crossed!r}" if self.crossed is not None else "")
            raise ValueError(f"A BlockLayout has whole numbers for shape and dims, not {wrong}.") from None
        axis, lines = self.axis, self.lines
        if (axis is None) != (lines is None):
            raise ValueError(
                f"A BlockLayout takes both axis and lines or neither, because lines are counted along axis; got {axis=}, {lines=}"
            )
        if axis is not None and lines is not None:
            axis = self._dimension(axis, shape)
            order = parse_lines(lines)
            if axis in dims:
                raise ValueError(f"A BlockLayout cannot group lines along dimension {axis} because it also averages over it: {dims=}")
            if crossed is not None and axis not in crossed:
                raise ValueError(
                    f"A factored BlockLayout whose first mean groups lines along dimension {axis} has a second mean over that dimension, so"
                    f" that the two cross; got {crossed=}"
                )
            if order.size != shape[axis]:
                raise ValueError(
                    f"The line order {shorten(lines)} has {order.size} lines, but dimension {axis} of a tensor of shape {shape} has"
                    f" {shape[axis]}."
                )
            lines = str(order)
            groups = len(set(order.expand()))
            # The two ends need no groups: one way to say one thing, and no index at run time.
            if groups == order.size:
                axis = lines = None
            elif groups == 1:
                dims = sorted([*dims, axis])
                axis = lines = None
        object.__setattr__(self, "_asked", None if crossed is None else (tuple(dims), axis, lines, tuple(crossed)))
        if crossed is not None:
            dims, axis, lines, crossed = _as_one_mean(shape, dims, axis, lines, crossed)
        block_shape = [1 if d in dims else size for d, size in enumerate(shape)]
        if axis is not None and lines is not None:
            block_shape[axis] = len(group_names(lines))
        values = {"shape": shape, "dims": tuple(dims), "axis": axis, "lines": lines, "block_shape": tuple(block_shape)}
        for name, value in {**values, "crossed": None if crossed is None else tuple(crossed)}.items():
            object.__setattr__(self, name, value)
        both = () if crossed is None else (BlockLayout(shape, self.dims, axis, lines), BlockLayout(shape, tuple(crossed)))
        object.__setattr__(self, "_crossing", both)

    @staticmethod
    def _dimension(dim: int, shape: tuple[int, ...]) -> int:
        if not -len(shape) <= dim < len(shape):
            raise ValueError(f"Dimension {dim} is out of range for a tensor of shape {shape}.")
        return dim % len(shape)

    @classmethod
    def per_parameter(cls, shape: Sequence[int]) -> BlockLayout:
        """One block per element: Adam's own second moment."""
        return cls(tuple(shape))

    @classmethod
    def whole(cls, shape: Sequence[int]) -> BlockLayout:
        """The whole tensor one block."""
        return cls(tuple(shape), dims=tuple(range(len(shape))))

    @classmethod
    def each_line(cls, shape: Sequence[int], axis: int = 0) -> BlockLayout:
        """Each line along ``axis`` a block: the rows of a matrix for 0, its columns for 1."""
        axis = cls._dimension(axis, tuple(shape))
        return cls(tuple(shape), dims=tuple(d for d in range(len(shape)) if d != axis))

    @classmethod
    def factored(cls, shape: Sequence[int], axis: int = 0, other: int = 1) -> BlockLayout:
        """The mean of each line along ``axis``, and the mean of each line along ``other``: rows and columns of a matrix.

        Example:
            >>> [margin.block_shape for margin in BlockLayout.factored((8, 4, 3, 3)).margins]  # output and input channels
            [(8, 1, 1, 1), (1, 4, 1, 1)]
        """
        axis, other = cls._dimension(axis, tuple(shape)), cls._dimension(other, tuple(shape))
        rest = [tuple(d for d in range(len(shape)) if d != kept) for kept in (axis, other)]
        return cls(tuple(shape), dims=rest[0], crossed=rest[1])

    @classmethod
    def grouped(cls, shape: Sequence[int], lines: str, axis: int = 0) -> BlockLayout:
        """Groups of lines along ``axis`` are blocks, as ``lines`` says: heads of a projection, gates of an LSTM."""
        axis = cls._dimension(axis, tuple(shape))
        return cls(tuple(shape), dims=tuple(d for d in range(len(shape)) if d != axis), axis=axis, lines=lines)

    # ---- what it knows -----------------------------------------------------------------------------------------------

    @property
    def margins(self) -> tuple[BlockLayout, ...]:
        """The means that are kept, each a layout of its own: this one, or two that cross."""
        return self._crossing or (self,)

    @property
    def num_blocks(self) -> int:
        """Number of second moments kept: of blocks, in all margins."""
        return sum(math.prod(margin.block_shape) for margin in self.margins)

    @property
    def is_per_parameter(self) -> bool:
        """Whether each element is a block of its own."""
        return self.block_shape == self.shape

    @property
    def is_factored(self) -> bool:
        """Whether two means are kept, which cross."""
        return self.crossed is not None

    @property
    def is_orthogonal(self) -> bool:
        """Whether updates are orthogonalised matrices (:class:`~lightning_adam_mini.MatrixLayout`), and not Adam's."""
        return False

    def block_names(self) -> tuple[str, ...]:
        """Names of the groups along ``axis``, such as ``q.0``, ``q.1``, ``v``; empty if lines are not grouped."""
        if self.lines is None:
            return ()
        return tuple(role if head < 0 else f"{role}.{head}" for role, head in group_names(self.lines))

    def __str__(self) -> str:
        if self.crossed is not None:
            return " x ".join(map(str, self.margins))
        if self.lines is not None:
            return f"{self.lines} along dim {self.axis}"
        if self.is_per_parameter:
            return "per parameter"
        if self.num_blocks == 1:
            return "one block"
        return "mean over dim " + ", ".join(map(str, self.dims))

    def with_shape(self, shape: Sequence[int]) -> BlockLayout:
        """The same means of a tensor of another shape: two that cross, too, if they were asked for and saved nothing in this one."""
        dims, axis, lines, crossed = self._asked or (self.dims, self.axis, self.lines, self.crossed)
        return BlockLayout(tuple(shape), dims, axis, lines, crossed)

    # ---- all margins --------------------------------------------------------------------------------------------------

    def mean_squares(self, grad: Tensor) -> tuple[Tensor, ...]:
        """:meth:`mean_square` of each margin."""
        return tuple(margin.mean_square(grad) for margin in self.margins)

    def averages(self, values: Tensor) -> tuple[Tensor, ...]:
        """:meth:`average` of each margin."""
        return tuple(margin.average(values) for margin in self.margins)

    def combine(self, blocks: Sequence[Tensor]) -> Tensor:
        """Each element's second moment: of a factored layout the one that has these means and assumes nothing else.

        Args:
            blocks: A tensor of ``block_shape`` for each margin.

        Returns:
            Tensor that broadcasts to ``shape``; of a factored layout, one value per element. NaN where the means overflow.

        Example:
            >>> factored = BlockLayout.factored((2, 3))
            >>> factored.combine([torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0, 4.0, 0.0]])]).tolist()
            [[1.0, 2.0, 0.0], [3.0, 6.0, 0.0]]
        """
        if self.crossed is None:
            return self.spread(blocks[0])
        rows, columns = self._factors(blocks)
        return rows * columns

    def roots(self, blocks: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Factors whose product is the square root of each element's second moment. Each broadcasts to ``shape``.

        Roots of the factors, and not of their product, because that of small gradients would be a denormal number, or 0.
        """
        if self.crossed is None:
            return (self.spread(blocks[0].sqrt()),)
        return tuple(factor.sqrt() for factor in self._factors(blocks))

    def _factors(self, blocks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        rows, columns = cross(self.margins, blocks)
        return self.margins[0].spread(rows), columns

    # ---- averaging and spreading, of one margin -----------------------------------------------------------------------

    def mean_square(self, grad: Tensor) -> Tensor:
        """Mean of ``grad²`` over each block.

        A sum of squares may be too large for its dtype where each square and their mean are not. On the CPU such a mean comes out right all
        the same. On other devices it is infinite, because to look would be to wait for the device (the Triton kernels look on the device);
        so it is in what torch.compile traces or autograd records.

        Args:
            grad: Tensor of ``shape``, of any floating dtype and strides.

        Returns:
            Tensor of ``block_shape``: float64 for a float64 ``grad``, else float32.
        """
        self._check_one_mean()
        means = self._divide_by_size(self._sum_groups(sum_square(grad, self.dims, second_moment_dtype(grad.dtype))))
        if self.is_per_parameter or all_finite(means):
            return means
        sums = self._sum_groups(sum_square(scale_down(grad), self.dims, torch.float64))
        return torch.where(means.isfinite(), means, scale_squares_up(self._divide_by_size(sums)).to(means.dtype))

    def average(self, values: Tensor) -> Tensor:
        """Mean of ``values`` over each block, in float64 so that float32 values that are equal within a block come back exactly.

        Args:
            values: Tensor of ``shape``.

        Returns:
            Tensor of ``block_shape`` and the dtype of ``values``, but at least float32.
        """
        self._check_one_mean()
        sums = values.double()
        if self.dims:
            sums = sums.sum(dim=self.dims, keepdim=True)
        return self._divide_by_size(self._sum_groups(sums)).to(second_moment_dtype(values.dtype))

    def spread(self, blocks: Tensor) -> Tensor:
        """Give each element of the tensor its block's value, by broadcasting.

        Args:
            blocks: Tensor of ``block_shape``.

        Returns:
            Tensor that broadcasts to ``shape``: ``blocks`` itself or, where lines are grouped, one value per line.
        """
        self._check_one_mean()
        if self.axis is None or self.lines is None:
            return blocks
        return blocks.index_select(self.axis, group_index(self.lines, blocks.device).group_of_line)

    def gather(self, spread: Tensor) -> Tensor:
        """Undo :meth:`spread`: one value per block, in ``block_shape``."""
        self._check_one_mean()
        if self.axis is None or self.lines is None:
            return spread
        return spread.index_select(self.axis, group_index(self.lines, spread.device).first_line)

    def _check_one_mean(self) -> None:
        if self.crossed is not None:
            raise ValueError(f"A factored BlockLayout ({self}) keeps two means. Ask each of its margins, or use mean_squares and combine.")

    def _sum_groups(self, lines: Tensor) -> Tensor:
        if self.axis is None or self.lines is None:
            return lines
        return sum_groups(lines, self.axis, self.lines)

    def _block_sizes(self, device: torch.device) -> int | Tensor:
        averaged = max(math.prod([self.shape[d] for d in self.dims]), 1)
        if self.axis is None or self.lines is None:
            return averaged
        lengths = group_index(self.lines, device).lengths * averaged
        return lengths.view([-1 if d == self.axis else 1 for d in range(len(self.shape))])

    def _divide_by_size(self, sums: Tensor) -> Tensor:
        size = self._block_sizes(sums.device)
        return sums if isinstance(size, int) and size == 1 else sums.div_(size)

    # ---- shards -------------------------------------------------------------------------------------------------------

    def shard(self, offsets: Iterable[int], sizes: Iterable[int]) -> BlockShard:
        """The part of the layout that a rectangular shard of the tensor holds.

        Args:
            offsets: Where the shard begins in each dimension.
            sizes: Its length in each dimension; 0 for an empty shard.

        Raises:
            ValueError: If the shard does not lie within the tensor.
        """
        self._check_one_mean()
        return BlockShard(self, tuple(offsets), tuple(sizes))

    # ---- plain data ---------------------------------------------------------------------------------------------------

    def to_plain(self) -> tuple[Any, ...]:
        """The layout as tuples, numbers and a string, as checkpoints hold it: shape, dims, axis, lines and, if there is one, crossed."""
        plain = (self.shape, self.dims, self.axis, self.lines)
        return plain if self.crossed is None else (*plain, self.crossed)

    @classmethod
    def from_plain(cls, plain: Sequence[Any]) -> BlockLayout:
        """The inverse of :meth:`to_plain`; takes lists for tuples, as YAML gives, and None for an empty one, as torch.distributed does.

        Example:
            >>> BlockLayout.from_plain([[4, 6], None, None, None])
            BlockLayout(shape=(4, 6), dims=(), axis=None, lines=None, crossed=None)
        """
        shape, dims, axis, lines, *rest = plain
        if len(rest) > 1:  # a MatrixLayout
            from lightning_adam_mini.matrix_layout import MatrixLayout

            return MatrixLayout(tuple(shape), **{**rest[1], "stacked": tuple(rest[1].get("stacked") or ())})
        crossed = rest
        return cls(tuple(shape or ()), tuple(dims or ()), axis, lines, tuple(crossed[0]) if crossed else None)


def cross(margins: Sequence[BlockLayout], blocks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Two means as the factors of the second moment that has them: the first over the mean that both average to, and the second.

    Args:
        margins: The margins of a factored layout.
        blocks: The means over their blocks; those of the second along all that the first averages over.
    """
    first, second = blocks
    both = second.mean(dim=[d for d in margins[0].dims if d not in margins[1].dims], keepdim=True)
    # 0 / 0 is 0, as in a block that never had a gradient. Where the mean is infinite no ratio is right, and none is to look so.
    return (first / both).masked_fill(both == 0, 0) + (both - both), second


def _as_one_mean(
    shape: tuple[int, ...], dims: list[int], axis: int | None, lines: str | None, crossed: list[int]
) -> tuple[list[int], int | None, str | None, list[int] | None]:
    """Two means as one, where one follows from the other or both are no fewer numbers than the elements."""
    long = {d for d, size in enumerate(shape) if size > 1}
    if long & {*crossed} <= {*dims}:  # the second mean is the finer one
        return sorted(long & {*crossed}), None, None, None
    if long & {*dims} <= {*crossed}:
        return sorted(long & {*dims}), axis, lines, None
    first = BlockLayout(shape, tuple(dims), axis, lines)
    if first.num_blocks + BlockLayout(shape, tuple(crossed)).num_blocks >= math.prod(shape):
        return [], None, None, None
    return dims, axis, lines, crossed
