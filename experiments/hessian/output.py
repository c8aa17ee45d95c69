"""What a figure or an audit gives, and heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from experiments.tables import Table


@dataclass(frozen=True)
class Found:
    """What a figure or an audit gives.

    Args:
        name: Name of its files.
        title: What it found out.
        text: What a reader must know of the table.
        rows: The numbers; of which seed is said in those that are not of the command's.
        table: What is shown.
        figures: By name of the PNG.
        facts: Further numbers.
    """

    name: str
    title: str
    text: str
    rows: Sequence[Mapping[str, Any]]
    table: Table
    figures: Mapping[str, Figure] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def heat_map(axes: Any, matrix: Tensor, title: str, lines: int | None = None) -> None:
    """Draw the absolute values of a matrix, white where they are 0, black from their 99.5th percentile on.

    Args:
        axes: The chart.
        matrix: Any number of rows and columns: each point shows the largest entry that it covers.
        title: What it is.
        lines: Number of blocks along a side, whose edges are drawn.
    """
    from torch.nn.functional import adaptive_max_pool2d

    shown = matrix.abs().float()
    if len(shown) > 256:
        shown = adaptive_max_pool2d(shown[None], 256)[0]
    axes.imshow(shown.numpy(), cmap="magma_r", vmin=0, vmax=max(float(shown.flatten().quantile(0.995)), 1e-30), interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
    for i in range(1, lines or 1):
        edge = i * len(shown) / (lines or 1) - 0.5
        axes.axhline(edge, color="#0072B2", linewidth=0.4)
        axes.axvline(edge, color="#0072B2", linewidth=0.4)
