"""Figures 13 to 17, along the run: ratios of every tensor of a small and a medium GPT, by layer type."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from experiments.slim_adam.depth import LRS as LRS
from experiments.slim_adam.depth import SEEDS as SEEDS
from experiments.slim_adam.depth import STEPS as STEPS
from experiments.slim_adam.depth import about, two_sizes
from experiments.slim_adam.figures import finish_types, type_panels
from experiments.slim_adam.room import Asked, Run
from experiments.tables import Table
from lightning_adam_mini.analysis import average_snr
from lightning_adam_mini.callbacks.snr_figures import COLOURS, ratios_along

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curves = dict[tuple[str, str], dict[str, list[float]]]
"""By layer type and what is averaged, and by parameter: a ratio for each measurement."""


def make(asked: Asked) -> None:
    """Draw the figure.

    Args:
        asked: Learning rates (the first is taken), steps; a root of text files in place of Python's source.
    """
    runs = two_sizes(asked)
    curves = {name: curves_of(run) for name, run in runs.items()}
    rows = [
        {"model": name, "layer_type": kind, "over": over, "step": step, "ratio": ratio}
        for name, found in curves.items()
        for (kind, over), each in found.items()
        for step, ratio in zip(runs[name].history.steps, mean_curve(each), strict=True)
    ]
    asked.publish(
        "trajectories", "Ratios along the run", about(asked), rows, [quarters_table(curves)], {"trajectories": draw(runs, curves)}
    )


def curves_of(run: Run) -> Curves:
    """Return the ratios along a run.

    Args:
        run: The run.
    """
    found: Curves = {}
    for step in ratios_along(run.history, run.report):
        for kind, by in step.items():
            for over, each in by.items():
                for parameter, ratio in each.items():
                    found.setdefault((kind, over), {}).setdefault(parameter, []).append(ratio)
    return found


def mean_curve(each: Mapping[str, list[float]]) -> list[float]:
    """Return the mean over depth, for each measurement.

    Args:
        each: Ratios along the run, by parameter.
    """
    return [average_snr(values) for values in zip(*each.values(), strict=True)]


def quarters_table(curves: Mapping[str, Curves]) -> Table:
    """Return the means over each quarter of the run.

    Args:
        curves: By size of the model.
    """
    lines = []
    for name, found in curves.items():
        for (kind, over), each in found.items():
            mean = mean_curve(each)
            ends = [len(mean) * i // 4 for i in range(5)]
            lines.append([kind, over, name, *(f"{average_snr(mean[a:b]):.2f}" for a, b in itertools.pairwise(ends))])
    order = list(dict.fromkeys((kind, over) for kind, over, *_ in lines))
    lines.sort(key=lambda line: order.index((line[0], line[1])))
    return Table(["layer type", "averaged over", "model", "first quarter", "second", "third", "last"], lines, "Ratios averaged over depth")


def draw(runs: Mapping[str, Run], curves: Mapping[str, Curves]) -> Figure:
    """Draw the ratios along the run: a row of panels for each size, a panel for each layer type, thin lines for tensors.

    Args:
        runs: A run of each size.
        curves: Their ratios.
    """
    figure, panels = type_panels(runs, "step")
    for name, found in curves.items():
        for (kind, over), each in found.items():
            for curve in each.values():
                panels[name, kind].plot(runs[name].history.steps, _positive(curve), color=COLOURS[over], linewidth=0.4, alpha=0.4)
            panels[name, kind].plot(runs[name].history.steps, _positive(mean_curve(each)), color=COLOURS[over], linewidth=1.8, label=over)
    return finish_types(figure, panels)


def _positive(values: list[float]) -> list[float]:
    return [value if math.isfinite(value) and value > 0 else math.nan for value in values]
