"""How much each optimizer minds its learning rate and its betas: all settings that it was given, in a table and a figure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from experiments.compare.plan import Run, Setting
from experiments.compare.results import Finished
from experiments.figures import add_legend, new_figure, styles
from experiments.statistics import deviation

if TYPE_CHECKING:  # a second to import
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cell:
    """One optimizer at one setting.

    Args:
        optimizer: Its name.
        setting: Learning rate and betas.
        seeds: Number of runs.
        mean: Mean over seeds of the headline metric on the validation set, at the end of training.
        spread: Its standard deviation; nan for a single seed, and where a run diverged.
        spikes: Loss spikes of all runs together.
    """

    optimizer: str
    setting: Setting
    seeds: int
    mean: float
    spread: float
    spikes: int


def build_cells(results: Sequence[Finished]) -> list[Cell]:
    """Summarise the results, setting by setting.

    Args:
        results: All results by which settings are chosen.
    """
    by_cell: dict[tuple[str, Setting], list[Finished]] = {}
    for result in results:
        by_cell.setdefault((result.run.optimizer, result.run.setting), []).append(result)
    cells: list[Cell] = []
    for (name, setting), found in by_cell.items():
        values = [math.nan if (value := result.metric("val")) is None else value for result in found]
        spikes = sum(result.spikes or 0 for result in found)
        cells.append(Cell(name, setting, len(found), fmean(values), deviation(values), spikes))
    return cells


def sensitivity_rows(cells: Sequence[Cell]) -> list[dict[str, object]]:
    """Return the cells as rows.

    Args:
        cells: The cells.
    """
    return [
        {
            "optimizer": cell.optimizer,
            "lr": "" if cell.setting.lr is None else cell.setting.lr,
            "betas": cell.setting.betas_text(),
            "seeds": cell.seeds,
            "val_mean": f"{cell.mean:.6f}",
            "val_std": f"{cell.spread:.6f}",
            "spikes": cell.spikes,
        }
        for cell in cells
    ]


def draw_sensitivity(cells: Sequence[Cell], chosen: Sequence[Run], title: str) -> "Figure":
    """Draw the metric over the learning rate, and over the betas where there is a choice of them; the other is as it was chosen.

    Args:
        cells: The cells.
        chosen: A run of each optimizer at its setting.
        title: How a person calls the metric.
    """
    rates = list(dict.fromkeys(cell.setting.lr for cell in cells))
    betas = list(dict.fromkeys(cell.setting.betas for cell in cells))
    panels: list[tuple[str, list[Any], Callable[[Run], list[Setting]]]] = []
    if len(rates) > 1:
        at = [rate or math.nan for rate in rates]
        panels.append(("learning rate", at, lambda run: [Setting(rate, run.setting.betas) for rate in rates]))
    if len(betas) > 1:
        names = [Setting(None, pair).betas_text() for pair in betas]
        panels.append(("betas", names, lambda run: [Setting(run.setting.lr, pair) for pair in betas]))
    by_cell = {(cell.optimizer, cell.setting): cell for cell in cells}
    looks = styles([run.optimizer for run in chosen])
    figure, axes = new_figure(len(panels))
    for axis, (label, places, settings_of) in zip(axes, panels, strict=True):
        axis.set_xlabel(label)
        axis.set_ylabel(f"validation {title}")
        if label == "learning rate":
            axis.set_xscale("log")
        for run in chosen:
            line = [by_cell[run.optimizer, setting] for setting in settings_of(run)]
            means, spreads = [cell.mean for cell in line], [cell.spread for cell in line]
            axis.errorbar(places, means, spreads, **looks[run.optimizer], marker="o", lw=1.2, label=run.optimizer)
    add_legend(axes[-1])
    return figure
