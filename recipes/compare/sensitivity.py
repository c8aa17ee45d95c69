"""How much each optimizer minds its learning rate and its betas: all settings that it was given, in a table and a figure."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from recipes.compare.axes import line_style, new_figure, write_figure
from recipes.compare.plan import Run, Setting
from recipes.compare.results import Result
from recipes.compare.spikes import find_spikes
from recipes.statistics import deviation


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


def build_cells(results: Sequence[Result]) -> list[Cell]:
    """Summarise the results, setting by setting.

    Args:
        results: All results by which settings are chosen.
    """
    by_cell: dict[tuple[str, Setting], list[Result]] = {}
    for result in results:
        by_cell.setdefault((result.run.optimizer, result.run.setting), []).append(result)
    cells: list[Cell] = []
    for (name, setting), found in by_cell.items():
        values = [math.nan if (value := result.metric("val")) is None else value for result in found]
        spikes = sum(len(find_spikes(result.losses)) for result in found)
        cells.append(Cell(name, setting, len(found), fmean(values), deviation(values), spikes))
    return cells


def sensitivity_csv(cells: Sequence[Cell]) -> str:
    """Return the cells as CSV.

    Args:
        cells: The cells.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["optimizer", "lr", "betas", "seeds", "val_mean", "val_std", "spikes"])
    for cell in cells:
        lr = "" if cell.setting.lr is None else cell.setting.lr
        numbers = [f"{cell.mean:.6f}", f"{cell.spread:.6f}"]
        writer.writerow([cell.optimizer, lr, cell.setting.betas_text(), cell.seeds, *numbers, cell.spikes])
    return buffer.getvalue()


def draw_sensitivity(cells: Sequence[Cell], chosen: Sequence[Run], title: str, file: Path) -> None:
    """Draw the metric over the learning rate, and over the betas where there is a choice of them; the other is as it was chosen.

    Args:
        cells: The cells.
        chosen: A run of each optimizer at its setting.
        title: How a person calls the metric.
        file: The PNG to write.
    """
    rates = list(dict.fromkeys(cell.setting.lr for cell in cells))
    betas = list(dict.fromkeys(cell.setting.betas for cell in cells))
    figure, axes = new_figure((len(rates) > 1) + (len(betas) > 1))
    panels = iter(axes)
    by_cell = {(cell.optimizer, cell.setting): cell for cell in cells}
    if len(rates) > 1:
        panel = next(panels)
        panel.set_xscale("log")
        panel.set_xlabel("learning rate")
        panel.set_ylabel(f"validation {title}")
        for number, run in enumerate(chosen):
            line = [by_cell[run.optimizer, Setting(lr, run.setting.betas)] for lr in rates]
            means, spreads = [cell.mean for cell in line], [cell.spread for cell in line]
            panel.errorbar(
                [lr or math.nan for lr in rates], means, spreads, **line_style(number), marker="o", ms=3, lw=1.2, label=run.optimizer
            )
    if len(betas) > 1:
        panel = next(panels)
        panel.set_xlabel("betas")
        panel.set_ylabel(f"validation {title}")
        for number, run in enumerate(chosen):
            line = [by_cell[run.optimizer, Setting(run.setting.lr, pair)] for pair in betas]
            means, spreads = [cell.mean for cell in line], [cell.spread for cell in line]
            names = [cell.setting.betas_text() for cell in line]
            panel.errorbar(names, means, spreads, **line_style(number), marker="o", ms=3, lw=1.2, label=run.optimizer)
    write_figure(figure, axes, file)
