"""Matrix layouts: which matrices of a tensor are orthogonalised, by Muon and NorMuon.

A :class:`MatrixLayout` says of one tensor what a :class:`~lightning_adam_mini.layout.BlockLayout` says of a tensor that Adam steps:

- ``MatrixLayout((4, 6))`` is one matrix of 4 rows.
- ``MatrixLayout((8, 4, 3, 3))`` is one matrix of 8 rows and 36 columns: a convolution.
- ``MatrixLayout((2, 4, 6), rows=1, stacked=(0,))`` is two matrices: experts.
- ``MatrixLayout((12, 4), cut="q:4|k:4|v:4")`` is three matrices of 4 rows: a fused projection.

With ``beta2`` each row has a second moment, that of its orthogonalised update (NorMuon); without, none is kept (Muon).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_adam_mini._sums import group_index, group_names
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.lines import parse_lines, shorten


@dataclass(frozen=True)
class MatrixLayout(BlockLayout):
    """The matrices of one tensor, each of which is orthogonalised.

    Args:
        shape: Shape of the tensor; of two dimensions or more.
        rows: Dimension of the rows (outputs). All dimensions but this and the stacked ones are columns.
        stacked: Dimensions that tell matrices apart, such as that of experts.
        cut: Which rows are a matrix of their own, in the language of :mod:`lightning_adam_mini.lines`: each head, and all the lines of a
            role that have no head. None if all rows are one.
        momentum: Decay of the first moment, which is Nesterov's.
        beta2: Decay of the second moment of each row; None for none.
        iterations: Newton-Schulz iterations.
        precision: Dtype of the iterations; None for bfloat16 on GPUs and float32 elsewhere.

    Raises:
        ValueError: If a dimension is not the tensor's, there are no columns, the lines do not add up, or a number is out of range.

    Example:
        >>> fused = MatrixLayout((12, 5), cut="q:4|k:4|v:4")
        >>> [tuple(one.shape) for one in fused.split(torch.ones(12, 5))]
        [(1, 4, 5), (1, 4, 5), (1, 4, 5)]
        >>> fused.num_blocks, MatrixLayout((12, 5), beta2=0.95).block_shape
        (0, (12, 1))
    """

    dims: tuple[int, ...] = field(init=False)
    axis: int | None = field(init=False)
    lines: str | None = field(init=False)
    crossed: tuple[int, ...] | None = field(init=False)
    rows: int = 0
    stacked: tuple[int, ...] = ()
    cut: str | None = None
    momentum: float = 0.95
    beta2: float | None = None
    iterations: int = 5
    precision: str | None = None

    def __post_init__(self) -> None:
        self._check_types()
        rows, stacked = self._dimension(self.rows, self.shape), tuple(sorted({self._dimension(d, self.shape) for d in self.stacked}))
        columns = tuple(d for d in range(len(self.shape)) if d != rows and d not in stacked)
        if rows in stacked or not columns:
            raise ValueError(
                f"A MatrixLayout has rows and columns beside what is stacked, but of shape {tuple(self.shape)} with {rows=} and {stacked=}"
                " nothing is left for one of them. Leave such a tensor to Adam: BlockLayout.factored, or an override 'factored'."
            )
        if not (0 <= self.momentum < 1 and (self.beta2 is None or 0 <= self.beta2 < 1) and self.iterations >= 1):
            raise ValueError(
                f"A MatrixLayout has momentum and beta2 in [0, 1) and at least one iteration, not momentum={self.momentum}, "
                f"beta2={self.beta2}, iterations={self.iterations}"
            )
        if self.precision not in (None, "float32", "bfloat16", "float64"):
            raise ValueError(f"A MatrixLayout's precision is None, 'float32', 'bfloat16' or 'float64', not {self.precision!r}")
        for name, value in {"rows": rows, "stacked": stacked, "dims": columns, "axis": None, "lines": None, "crossed": None}.items():
            object.__setattr__(self, name, value)
        super().__post_init__()
        if self.cut is not None:
            order = parse_lines(self.cut)
            if order.size != self.shape[rows]:
                raise ValueError(
                    f"The line order {shorten(self.cut)} has {order.size} lines, but dimension {rows} of a tensor of shape {self.shape} has"
                    f" {self.shape[rows]}."
                )
            object.__setattr__(self, "cut", None if len(group_names(str(order))) == 1 else str(order))

    def _check_types(self) -> None:
        whole, text = (lambda x: type(x) is int), (lambda x: x is None or isinstance(x, str))
        number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool)  # noqa: E731
        wanted = {
            "rows": (whole, "a whole number"),
            "stacked": (lambda x: isinstance(x, (tuple, list)) and all(map(whole, x)), "a tuple of whole numbers"),
            "cut": (text, "a line order, such as 'q:4|k:4|v:4', or None"),
            "momentum": (number, "a number"),
            "beta2": (lambda x: x is None or number(x), "a number or None"),
            "iterations": (whole, "a whole number"),
        }
        for name, (is_right, what) in wanted.items():
            if not is_right(getattr(self, name)):
                raise ValueError(f"A MatrixLayout's {name} is {what}, not {getattr(self, name)!r}.")

    # ---- what a BlockLayout knows -------------------------------------------------------------------------------------

    @property
    def margins(self) -> tuple[BlockLayout, ...]:
        """The second moments that are kept: that of rows, or none."""
        return () if self.beta2 is None else (BlockLayout(self.shape, self.dims),)

    @property
    def is_per_parameter(self) -> bool:
        """No: whatever the shape, an element does not step alone."""
        return False

    @property
    def is_orthogonal(self) -> bool:
        """Whether updates are orthogonalised matrices."""
        return True

    def with_shape(self, shape: Sequence[int]) -> MatrixLayout:
        """The same of a tensor of another shape; cut no more if the rows are others."""
        cut = self.cut if tuple(shape)[self.rows] == self.shape[self.rows] else None
        return MatrixLayout(tuple(shape), **{**self._rule(), "cut": cut})

    def _rule(self) -> dict[str, Any]:
        names = ("rows", "stacked", "cut", "momentum", "beta2", "iterations", "precision")
        return {name: getattr(self, name) for name in names}

    def to_plain(self) -> tuple[Any, ...]:
        """As for a BlockLayout, with a dictionary of numbers, texts and tuples at the end."""
        return (*BlockLayout(self.shape, self.dims).to_plain(), None, self._rule())

    def __str__(self) -> str:
        apart = "" if self.cut is None else f" by {self.cut}"
        rows = "" if self.beta2 is None else ", a second moment per row"
        return f"orthogonalised{apart}{rows}"

    # ---- its matrices -------------------------------------------------------------------------------------------------

    @property
    def matrices(self) -> tuple[tuple[int, int, int], ...]:
        """Number, rows and columns of the matrices, a triple for each that :meth:`split` gives."""
        count, columns = math.prod(self.shape[d] for d in self.stacked), math.prod(self.shape[d] for d in self.dims)
        return tuple((count, rows, columns) for rows in self._heights())

    def _heights(self) -> tuple[int, ...]:
        if self.cut is None:
            return (self.shape[self.rows],)
        return tuple(group_index(self.cut, torch.device("cpu")).lengths.tolist())

    def split(self, values: Tensor) -> list[Tensor]:
        """The matrices of a tensor.

        Args:
            values: Of ``shape``, or of ``block_shape``.

        Returns:
            For each part of the cut a tensor of shape (number, rows, columns); views where strides allow.
        """
        order = (*self.stacked, self.rows, *self.dims)
        values = values.permute(order)
        values = values.reshape(math.prod(values.shape[: len(self.stacked)]), self.shape[self.rows], -1)
        if self.cut is None:
            return [values]
        index = group_index(self.cut, values.device)
        if index.order is not None:
            values = values.index_select(1, index.order)
        return list(values.split(self._heights(), dim=1))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Undo :meth:`split`.

        Args:
            parts: What it gave, or others of these shapes.

        Returns:
            A tensor of ``shape``, or of ``block_shape`` if the parts have one column.
        """
        values = parts[0] if len(parts) == 1 else torch.cat([*parts], dim=1)
        if self.cut is not None:
            index = group_index(self.cut, values.device)
            if index.order is not None:
                values = values.index_select(1, index.order.argsort())
        order = (*self.stacked, self.rows, *self.dims)
        like = self.block_shape if values.shape[2] == 1 else self.shape
        return values.reshape([like[d] for d in order]).permute(sorted(range(len(order)), key=order.__getitem__))
