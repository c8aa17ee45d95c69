"""What a rectangular shard of a tensor holds of its blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_adam_mini._sums import group_index, second_moment_dtype, sum_square

if TYPE_CHECKING:
    from lightning_adam_mini.layout import BlockLayout


@dataclass(frozen=True)
class BlockShard:
    """What a rectangular shard of a tensor holds of its blocks. Made by :meth:`BlockLayout.shard`.

    The second moment of a block that several shards hold is the sum of their :meth:`sum_square` over :attr:`block_sizes`.

    Example:
        >>> from lightning_adam_mini.layout import BlockLayout
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
