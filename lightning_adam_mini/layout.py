"""Block layouts: which elements of a tensor share a second moment.

Adam keeps a second moment for each element; Adam-mini, AdaLayer and SlimAdam keep one for each *block* of elements, the mean of g² over
it. A :class:`BlockLayout` is the description of one tensor's blocks, as plain data:

- ``BlockLayout((4, 6))`` averages over nothing. Each element is a block: Adam.
- ``BlockLayout((4, 6), dims=(1,))`` averages over the second dimension. Each row is a block, 4 in all: an output neuron, a token.
- ``BlockLayout((4, 6), dims=(1,), axis=0, lines="q:2x2")`` averages each row and then the rows that belong together. Rows 0 and 1 are
  the first block and rows 2 and 3 the second: two heads.

Blocks live in a tensor of ``block_shape``: the averaged dimensions are 1 long, and the dimension ``axis`` has one entry for each group of
lines. ``average`` goes from the tensor to its blocks, ``spread`` goes back by broadcasting. Nothing else in this package reshapes a
gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import index

import torch
from torch import Tensor

from lightning_adam_mini._sums import all_finite, group_index, group_names, scale_down, scale_squares_up, sum_groups, sum_square
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

    Raises:
        ValueError: If the dimensions are not the tensor's, or the lines do not add up to its length along ``axis``.

    Example:
        >>> layout = BlockLayout((12, 5), dims=(1,), axis=0, lines="q:2x2|k:2x2|v:4x1")
        >>> layout.num_blocks, layout.block_shape
        (8, (8, 1))
        >>> layout.average(torch.ones(12, 5)).shape, layout.spread(torch.ones(8, 1)).shape
        (torch.Size([8, 1]), torch.Size([12, 1]))
    """

    shape: tuple[int, ...]
    dims: tuple[int, ...] = ()
    axis: int | None = None
    lines: str | None = None
    block_shape: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Shape of the tensor of blocks: as many dimensions as ``shape``, and broadcastable to it unless lines are grouped."""

    def __post_init__(self) -> None:
        try:
            shape = tuple(index(size) for size in self.shape)
            dims = sorted({self._dimension(index(d), shape) for d in self.dims})
        except TypeError:
            raise ValueError(f"A BlockLayout has whole numbers for shape and dims, not {self.shape!r} and {self.dims!r}.") from None
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
        block_shape = [1 if d in dims else size for d, size in enumerate(shape)]
        if axis is not None and lines is not None:
            block_shape[axis] = len(group_names(lines))
        values = (("shape", shape), ("dims", tuple(dims)), ("axis", axis), ("lines", lines), ("block_shape", tuple(block_shape)))
        for name, value in values:
            object.__setattr__(self, name, value)

    @staticmethod
    def _dimension(dim: int, shape: tuple[int, ...]) -> int:
        if not -len(shape) <= dim < len(shape):
            raise ValueError(f"Dimension {dim} is out of range for a tensor of shape {shape}.")
        return dim % len(shape)

    @classmethod
    def per_parameter(cls, shape: Sequence[int]) -> BlockLayout:
        """Each element a block: Adam's own second moment."""
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
    def grouped(cls, shape: Sequence[int], lines: str, axis: int = 0) -> BlockLayout:
        """Groups of lines along ``axis`` are blocks, as ``lines`` says: heads of a projection, gates of an LSTM."""
        axis = cls._dimension(axis, tuple(shape))
        return cls(tuple(shape), dims=tuple(d for d in range(len(shape)) if d != axis), axis=axis, lines=lines)

    # ---- what it knows -----------------------------------------------------------------------------------------------

    @property
    def num_blocks(self) -> int:
        """Number of blocks, which is the number of second moments kept."""
        return math.prod(self.block_shape)

    @property
    def is_per_parameter(self) -> bool:
        """Whether each element is a block of its own."""
        return self.block_shape == self.shape

    def block_names(self) -> tuple[str, ...]:
        """Names of the groups along ``axis``, such as ``q.0``, ``q.1``, ``v``; empty if lines are not grouped."""
        if self.lines is None:
            return ()
        return tuple(role if head < 0 else f"{role}.{head}" for role, head in group_names(self.lines))

    def __str__(self) -> str:
        if self.lines is not None:
            return f"{self.lines} along dim {self.axis}"
        if self.is_per_parameter:
            return "per parameter"
        if self.num_blocks == 1:
            return "one block"
        return "mean over dim " + ", ".join(map(str, self.dims))

    # ---- averaging and spreading --------------------------------------------------------------------------------------

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
        sums = values.double()
        if self.dims:
            sums = sums.sum(dim=self.dims, keepdim=True)
        return self._divide_by_size(self._sum_groups(sums)).to(second_moment_dtype(values.dtype))

    def spread(self, blocks: Tensor) -> Tensor:
        """Give each element of the tensor its block's value, by broadcasting.

        Args:
            blocks: Tensor of ``block_shape``.

        Returns:
            Tensor that broadcasts to ``shape``: ``blocks`` itself or, where lines are grouped, one value a line.
        """
        if self.axis is None or self.lines is None:
            return blocks
        return blocks.index_select(self.axis, group_index(self.lines, blocks.device).group_of_line)

    def gather(self, spread: Tensor) -> Tensor:
        """Undo :meth:`spread`: one value a block, in ``block_shape``."""
        if self.axis is None or self.lines is None:
            return spread
        return spread.index_select(self.axis, group_index(self.lines, spread.device).first_line)

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
        return BlockShard(self, tuple(offsets), tuple(sizes))

    # ---- plain data ---------------------------------------------------------------------------------------------------

    def to_plain(self) -> tuple[tuple[int, ...], tuple[int, ...], int | None, str | None]:
        """The layout as tuples, numbers and a string, as checkpoints hold it."""
        return (self.shape, self.dims, self.axis, self.lines)

    @classmethod
    def from_plain(cls, plain: Sequence) -> BlockLayout:
        """The inverse of :meth:`to_plain`; takes lists for tuples, as YAML gives, and None for an empty one, as torch.distributed does.

        Example:
            >>> BlockLayout.from_plain([[4, 6], None, None, None])
            BlockLayout(shape=(4, 6), dims=(), axis=None, lines=None)
        """
        shape, dims, axis, lines = plain
        return cls(tuple(shape or ()), tuple(dims or ()), axis, lines)


@dataclass(frozen=True)
class BlockShard:
    """What a rectangular shard of a tensor holds of its blocks. Made by :meth:`BlockLayout.shard`.

    The second moment of a block that several shards hold is the sum of their :meth:`sum_square` over :attr:`block_sizes`.

    Example:
        >>> half = BlockLayout((4, 6), dims=(1,)).shard(offsets=(0, 0), sizes=(4, 3))
        >>> half.is_whole, half.sum_square(torch.ones(4, 3)).flatten().tolist()
        (False, [3.0, 3.0, 3.0, 3.0])
    """

    layout: BlockLayout
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    _kept: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shape = self.layout.shape
        fits = len(self.offsets) == len(self.sizes) == len(shape)
        if not fits or any(o < 0 or n < 0 or o + n > size for o, n, size in zip(self.offsets, self.sizes, shape, strict=True)):
            raise ValueError(f"A shard at {self.offsets} of size {self.sizes} does not lie within a tensor of shape {shape}.")
        object.__setattr__(self, "_kept", tuple(d for d in range(len(shape)) if d not in self.layout.dims))

    @property
    def is_whole(self) -> bool:
        """Whether each block that the shard touches lies within it, so that its second moment needs no other shard."""
        layout = self.layout
        if 0 in self.sizes:
            return True
        if any(self.sizes[d] != layout.shape[d] for d in layout.dims):
            return False
        if layout.axis is None or layout.lines is None:
            return True
        groups = group_index(layout.lines, torch.device("cpu")).group_of_line
        here = groups[self._range(layout.axis)]
        return bool(torch.isin(groups, here).sum() == len(here))

    @property
    def block_sizes(self) -> Tensor:
        """Number of elements of each of the *whole tensor's* blocks, broadcastable to ``block_shape``; at least 1, even if it has none."""
        sizes = self.layout._block_sizes(torch.device("cpu"))
        return torch.full([1] * len(self.sizes), sizes, dtype=torch.float32) if isinstance(sizes, int) else sizes.to(torch.float32)

    def sum_square(self, grad: Tensor) -> Tensor:
        """Sum of ``grad²`` over this shard's part of each block.

        It is infinite where it is too large for its dtype, even if the mean over the block were not. Ranks add up what this returns, and
        more bits or another scale would cost each step of each run something.

        Args:
            grad: The local gradient, of shape ``sizes``.

        Returns:
            float32 (float64 for a float64 ``grad``) tensor of the whole tensor's ``block_shape``, zero where the shard holds nothing.
        """
        return self._sum_lines(sum_square(grad, self.layout.dims, second_moment_dtype(grad.dtype)))

    def sum(self, values: Tensor) -> Tensor:
        """Sum of ``values`` over this shard's part of each block, in float64.

        Args:
            values: Tensor of shape ``sizes``.

        Returns:
            Tensor of the whole tensor's ``block_shape``, zero where the shard holds nothing.
        """
        values = values.double()
        return self._sum_lines(values.sum(dim=self.layout.dims, keepdim=True) if self.layout.dims else values)

    def _sum_lines(self, local: Tensor) -> Tensor:
        layout = self.layout
        lines = list(layout.block_shape)
        if layout.axis is not None:
            lines[layout.axis] = layout.shape[layout.axis]
        full = local.new_zeros(lines)
        full[tuple(self._range(d) if d in self._kept else slice(None) for d in range(len(lines)))] = local
        return layout._sum_groups(full)

    def spread(self, blocks: Tensor) -> Tensor:
        """The part of :meth:`BlockLayout.spread` that broadcasts to the shard."""
        full = self.layout.spread(blocks)
        return full[tuple(self._range(d) if d in self._kept else slice(None) for d in range(full.ndim))]

    def _range(self, dim: int) -> slice:
        return slice(self.offsets[dim], self.offsets[dim] + self.sizes[dim])


def second_moment_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of second moments: float32 at least, because a bfloat16 average with beta2 = 0.999 never moves."""
    return torch.promote_types(dtype, torch.float32)
