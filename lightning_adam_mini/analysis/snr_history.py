"""Signal-to-noise ratios measured along a run: the record, its averages, and both as plain data."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

from lightning_adam_mini.analysis.snr import measure_snr, subset_layouts
from lightning_adam_mini.layout import BlockLayout

Averaged: TypeAlias = tuple[int, ...] | Literal["crossed"]
"""What is averaged: dimensions, or rows and columns that cross."""


class SNRHistory:
    """Signal-to-noise ratios of second moments, measurement by measurement.

    Example:
        >>> history = SNRHistory()
        >>> history.measure(100, {"fc.weight": torch.tensor([[1.0, 3.0], [2.0, 6.0]])})["fc.weight"][(0,)]
        9.0
        >>> history.averages()["fc.weight"][(1,)]
        4.0
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        """Steps taken before each measurement."""
        self._columns: dict[tuple[str, BlockLayout], int] = {}
        self._rows: list[Tensor] = []

    def measure(
        self, step: int, second_moments: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], *others: Mapping[str, BlockLayout]
    ) -> dict[str, dict[Averaged, float]]:
        """Measure all parameters, and remember it.

        Args:
            step: Steps taken so far.
            second_moments: Adam's second moments, one value per element, by parameter name; or pairs of name and second moment, of which
                one is held at a time. Those of one element have no ratio.
            *others: Layouts by parameter name that are measured besides the dimensions: heads, factored ones.

        Returns:
            What was measured now, by parameter name and dimensions, or ``"crossed"`` of a factored layout; heads are in :meth:`table`.
        """
        names: list[tuple[str, BlockLayout]] = []
        found: list[Tensor] = []
        pairs = cast("Iterable[tuple[str, Tensor]]", second_moments.items() if isinstance(second_moments, Mapping) else second_moments)
        for name, v in pairs:
            layouts = subset_layouts(v.shape)
            layouts += [other[name] for other in others if name in other and other[name] not in layouts]
            if layouts:
                names += [(name, layout) for layout in layouts]
                found.append(measure_snr(v, layouts))
        # One transfer to the host: the only wait for the device.
        values = torch.cat([snr.to(found[0].device) for snr in found]).cpu() if found else torch.empty(0, dtype=torch.float64)
        for column in names:
            self._columns.setdefault(column, len(self._columns))
        row = torch.full((len(self._columns),), math.nan, dtype=torch.float64)
        row[[self._columns[column] for column in names]] = values
        self.steps.append(step)
        self._rows.append(row)
        return _by_dims(names, values.tolist())

    def table(self) -> Tensor:
        """All measurements: float64, one row per measurement and one column per ``(parameter, layout)``; nan where nothing was measured."""
        table = torch.full((len(self._rows), len(self._columns)), math.nan, dtype=torch.float64)
        for i, row in enumerate(self._rows):
            table[i, : len(row)] = row
        return table

    def columns(self) -> tuple[tuple[str, BlockLayout], ...]:
        """The parameter and the layout of each column of :meth:`table`."""
        return tuple(self._columns)

    def averages(self) -> dict[str, dict[Averaged, float]]:
        """The ratios averaged over the measurements, as :meth:`measure` returns them (heads are left out); see :func:`average_snr`."""
        return _by_dims(self._columns, map(average_snr, self.table().T.tolist()))

    def csv_text(self) -> str:
        """All measurements as CSV: step, key, shape, compress_dims (or ``head``, ``crossed``), snr: columns of SlimAdam's own tables."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["step", "key", "shape", "compress_dims", "snr"])
        for step, row in zip(self.steps, self.table().tolist(), strict=True):
            for (name, layout), snr in zip(self._columns, row, strict=True):
                if not math.isnan(snr):
                    writer.writerow([step, name, layout.shape, "head" if layout.lines else averaged(layout), f"{snr:.8g}"])
        return buffer.getvalue()

    def state_dict(self) -> dict[str, Any]:
        """The history as tensors and plain data, for a checkpoint."""
        columns = [(name, layout.to_plain()) for name, layout in self._columns]
        return {"steps": list(self.steps), "columns": columns, "values": self.table()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.steps = list(state["steps"])
        self._columns = {(name, BlockLayout.from_plain(plain)): i for i, (name, plain) in enumerate(state["columns"])}
        self._rows = list(state["values"].clone())


def averaged(layout: BlockLayout) -> Averaged:
    """What a layout averages over."""
    return "crossed" if layout.is_factored else layout.dims


def _by_dims(columns: Iterable[tuple[str, BlockLayout]], values: Iterable[float]) -> dict[str, dict[Averaged, float]]:
    out: dict[str, dict[Averaged, float]] = {}
    for (name, layout), value in zip(columns, values, strict=True):
        if layout.lines is None:
            out.setdefault(name, {})[averaged(layout)] = value
    return out


def average_snr(values: Iterable[float]) -> float:
    """The mean of those that are finite; inf if none is but some are infinite; nan if there is nothing but nan.

    Something that is constant at one time, or in one layer, says less than what varies at another.

    Example:
        >>> average_snr([1.0, 3.0, math.inf, math.nan]), average_snr([math.inf, math.nan]), average_snr([])
        (2.0, inf, nan)
    """
    known = [value for value in values if not math.isnan(value)]
    finite: Sequence[float] = [value for value in known if math.isfinite(value)]
    if finite:
        return math.fsum(finite) / len(finite)
    return math.inf if known else math.nan
