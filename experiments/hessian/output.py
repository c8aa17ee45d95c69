"""Figures and numbers as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.figures import save
from recipes.files import write_atomically


def write(out: Path, name: str, numbers: dict[str, Any], figure: Any = None) -> None:
    """Write the numbers of a figure, and the figure.

    Args:
        out: The folder, which is made.
        name: Name of the files.
        numbers: What goes into ``name.json``.
        figure: What goes into ``name.png``.
    """
    write_atomically(out / f"{name}.json", json.dumps(numbers, indent=1))
    if figure is not None:
        save(figure, out / f"{name}.png")


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
