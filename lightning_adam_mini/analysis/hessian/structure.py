r"""How much of a Hessian lies within blocks, and how much would by chance.

H is the Hessian of one parameter and :math:`H_{ij}^2` its mass. A layout's *share* is the mass of all pairs of elements that are in one
block. Large blocks hold much of any matrix, so a share says something only beside its *null*: what blocks of the same sizes would hold if
it did not matter who is in them.

- Of groups of lines (heads) it is the expected share if lines (rows of the weight) are permuted at random. What lies within a line stays.
- Of lines, columns and other means it is the expected share if elements are permuted. The diagonal stays.
- Of single elements it is what a matrix of equal entries has on its diagonal.

All of these expectations are closed formulas of the same masses: nothing is drawn. The *concentration* (share - null) / (1 - null) is 0 for
blocks that are as good as any, and 1 where nothing lies outside. It may be asked within the blocks of a coarser layout: then the mass
outside of those does not count, and permutations do not leave them.

The masses may be those of a sample of the Hessian's columns, with a weight each. Shares are then ratios of sums, and have a standard error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout


class Share(NamedTuple):
    """Part of a Hessian's squared mass that lies within blocks.

    Attributes:
        share: The part, from 0 to 1; nan if the Hessian is 0.
        null: What it would be by chance.
        error: Standard error of the share, 0 if it is of all columns.
    """

    share: float
    null: float
    error: float = 0.0

    @property
    def concentration(self) -> float:
        """0 if the blocks are as good as any, 1 if they hold everything, below 0 if they hold less than chance; nan if they must hold all.

        Example:
            >>> Share(0.75, 0.5).concentration
            0.5
        """
        return (self.share - self.null) / (1 - self.null) if self.null < 1 - 1e-12 else math.nan


@dataclass(frozen=True)
class Mass:
    """Squared entries of columns of one parameter's Hessian.

    Args:
        shape: The parameter's shape.
        indices: Its elements whose columns these are, int64 of shape (k,).
        squares: Their squared entries, float64 of shape (k, n).
        weights: What each column stands for, float64 of shape (k,): 1 if all are here, else one over its chance of being here.
        sampled: Whether these are some of the columns.
    """

    shape: tuple[int, ...]
    indices: Tensor
    squares: Tensor
    weights: Tensor
    sampled: bool = False

    @classmethod
    def of_hessian(cls, hessian: Tensor, shape: tuple[int, ...]) -> Mass:
        """All columns.

        Args:
            hessian: Tensor of shape (n, n).
            shape: Shape of the parameter, of n elements.

        Raises:
            ValueError: If the sizes differ.

        Example:
            >>> heads = BlockLayout.grouped((4, 1), "q:2x2")
            >>> Mass.of_hessian(torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)), (4, 1)).share(heads)
            Share(share=1.0, null=0.666..., error=0.0)
        """
        n = math.prod(shape)
        if hessian.shape != (n, n):
            raise ValueError(f"A Hessian of shape {tuple(hessian.shape)} is not that of a parameter of shape {shape}, of {n} elements.")
        return cls(tuple(shape), torch.arange(n), hessian.detach().cpu().double().square(), torch.ones(n, dtype=torch.float64))

    @classmethod
    def of_columns(cls, columns: Tensor, indices: Tensor, weights: Tensor, sampled: bool = True) -> Mass:
        r"""Some columns.

        Args:
            columns: Tensor of shape (k, \*shape).
            indices: The elements they belong to, flat, of shape (k,).
            weights: One over the chance of each, of shape (k,).
            sampled: Whether these are some of the columns.
        """
        squares = columns.detach().cpu().double().flatten(1).square()
        return cls(tuple(columns.shape[1:]), indices.cpu(), squares, weights.cpu().double(), sampled)

    def lines(self, axis: int = 0) -> Tensor:
        """Mass between lines along a dimension: float64 matrix (m, m), to be looked at. Row r: what the columns of line r have in each."""
        m = self.shape[axis]
        squares = (self.squares * self.weights[:, None]).view(-1, *self.shape).movedim(axis + 1, 1).reshape(len(self.indices), m, -1).sum(2)
        line = torch.arange(m).view([-1 if d == axis else 1 for d in range(len(self.shape))]).expand(self.shape).reshape(-1)
        return torch.zeros(m, m, dtype=torch.float64).index_add_(0, line[self.indices], squares)

    def share(self, layout: BlockLayout, within: BlockLayout | None = None) -> Share:
        """What lies within blocks, and its null; see :meth:`Held.share`."""
        return self.measure([layout] if within is None else [layout, within]).share(layout, within)

    def measure(self, layouts: Iterable[BlockLayout]) -> Held:
        """What lies within the blocks of each layout.

        Raises:
            ValueError: If a layout is of another shape.
        """
        held: dict[BlockLayout, Tensor] = {}
        for layout in (*layouts, BlockLayout.whole(self.shape), BlockLayout.per_parameter(self.shape)):
            if layout.shape != self.shape:
                raise ValueError(f"The layout {layout!r} is not for a parameter of shape {self.shape}. Give one that is.")
            for each in (layout, _unit(layout)):
                if each not in held:
                    held[each] = self._held(each)
        return Held(self.weights, held, self.sampled)

    def _held(self, layout: BlockLayout) -> Tensor:
        """Of each column, the mass within its own block."""
        same = torch.zeros_like(self.squares, dtype=torch.bool)
        for ids in block_ids(layout):
            same |= ids == ids[self.indices][:, None]
        return (self.squares * same).sum(1)


@dataclass(frozen=True)
class Held:
    """What columns of a Hessian hold within their own block, of several layouts. Small, whatever the parameter's size.

    Args:
        weights: What each column stands for, of shape (k,).
        held: Squared mass of each column within its block, of shape (k,), by layout; that of what their nulls permute too.
        sampled: Whether these are some of the columns.
    """

    weights: Tensor
    held: dict[BlockLayout, Tensor]
    sampled: bool

    def joined(self, other: Held) -> Held:
        """These columns and others, of the same layouts."""
        held = {layout: torch.cat([mass, other.held[layout]]) for layout, mass in self.held.items()}
        return Held(torch.cat([self.weights, other.weights]), held, self.sampled)

    def share(self, layout: BlockLayout, within: BlockLayout | None = None) -> Share:
        """What lies within blocks, and its null.

        Args:
            layout: The blocks. Of a factored layout what shares a row or a column counts.
            within: A coarser layout, whose blocks are unions of these: what lies outside of its blocks does not count, and nothing is
                permuted out of them. [default: the whole tensor]
        """
        coarse = BlockLayout.whole(layout.shape) if within is None else within
        held, total = self.held[layout], self.held[coarse]
        whole = float(self.weights @ total)
        if not whole > 0:
            return Share(math.nan, math.nan)
        share = float(self.weights @ held) / whole
        error = float((self.weights * (held - share * total)).square().sum().sqrt()) / whole if self.sampled else 0.0
        if layout.is_per_parameter:
            return Share(share, _pairs(layout) / _pairs(coarse), error)
        unit = _unit(layout)
        same = float(self.weights @ self.held[unit]) / whole
        apart = _pairs(coarse) - _pairs(unit)
        chance = (_pairs(layout) - _pairs(unit)) / apart if apart > 0 else 1.0
        return Share(share, same + (1 - same) * chance, error)


def _unit(layout: BlockLayout) -> BlockLayout:
    """What the null permutes: lines where these are grouped, else elements."""
    if layout.lines is None or layout.axis is None:
        return BlockLayout.per_parameter(layout.shape)
    return BlockLayout(layout.shape, layout.dims)


@lru_cache(maxsize=64)
def block_ids(layout: BlockLayout) -> tuple[Tensor, ...]:
    """For each margin the block of each element, flat."""
    found = []
    for margin in layout.margins:
        blocks = torch.arange(margin.num_blocks).view(margin.block_shape)
        found.append(margin.spread(blocks).expand(layout.shape).reshape(-1))
    return tuple(found)


@lru_cache(maxsize=1024)
def _pairs(layout: BlockLayout) -> int:
    """Ordered pairs of elements (each with itself, too) that are in one block."""
    ids = list(block_ids(layout))
    if len(ids) == 2:
        ids.append(ids[0] * (int(ids[1].max()) + 1) + ids[1])
    counts = [int(torch.bincount(each).square().sum()) for each in ids]
    return counts[0] if len(counts) == 1 else counts[0] + counts[1] - counts[2]


@lru_cache(maxsize=4096)
def is_nested(fine: BlockLayout, coarse: BlockLayout) -> bool:
    """Whether each block of one layout lies in one block of another; both of one mean.

    Example:
        >>> is_nested(BlockLayout.grouped((8, 1), "q:4x2"), BlockLayout.grouped((8, 1), "q:2x4"))
        True
    """
    (a,), (b,) = block_ids(fine), block_ids(coarse)
    where = torch.empty(fine.num_blocks, dtype=b.dtype)
    where[a] = b  # one of the coarse blocks that each fine one is in
    return bool((where[a] == b).all())
