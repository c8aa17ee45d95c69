"""Figures 13 to 17, over depth: averaged ratios of every tensor of a small and a medium GPT, by layer type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from experiments.slim_adam.figures import finish_types, type_panels
from experiments.slim_adam.models import gpt
from experiments.slim_adam.room import Asked, Run, Task
from experiments.tables import Table
from lightning_adam_mini.analysis import average_snr
from lightning_adam_mini.callbacks.snr_figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LRS, STEPS, SEEDS = (1e-3,), 200, 1
SIZES = {"small": (4, 64), "medium": (6, 96)}
"""Layers and width."""


def make(asked: Asked) -> None:
    """Draw the figure.

    Args:
        asked: Learning rates (the first is taken), steps; a root of text files in place of Python's source.
    """
    runs = two_sizes(asked)
    rows = [
        {"model": name, "layer_type": kind, "over": over, "depth": depth, "parameter": parameter, "ratio": ratio}
        for name, run in runs.items()
        for kind, by in run.ratios.items()
        for over, each in by.items()
        for depth, (parameter, ratio) in enumerate(each.items())
    ]
    asked.publish("depth", "Ratios over depth", about(asked), rows, [spread_table(runs)], {"depth": draw(runs)})


def two_sizes(asked: Asked) -> dict[str, Run]:
    """Return AdamW's measured run of each size.

    Args:
        asked: What was asked for.
    """
    sizes = {"small": (1, 16), "medium": (2, 16)} if asked.small else SIZES
    return asked.train(
        {name: Task(name, gpt(asked.steps, *size, asked.root), asked.lrs[0], every=asked.every) for name, size in sizes.items()}
    )


def about(asked: Asked) -> str:
    """Return what was trained.

    Args:
        asked: What was asked for.
    """
    sizes = " and ".join(f"{layers} layers and width {width} ({name})" for name, (layers, width) in SIZES.items())
    return f"GPTs of {sizes}, {asked.steps} steps of AdamW at lr {asked.lrs[0]:g}."


def spread_table(runs: Mapping[str, Run]) -> Table:
    """Return, for each layer type and size, the averaged ratios and the range of the rule's over depth.

    Args:
        runs: A run of each size.
    """
    lines = []
    for name, run in runs.items():
        for kind, by in run.ratios.items():
            means = {over: average_snr(each.values()) for over, each in by.items()}
            best = max(("fan_out", "fan_in", "all"), key=lambda over: means.get(over, -math.inf))
            alike = [
                max(("fan_out", "fan_in", "all"), key=lambda over: by.get(over, {}).get(layer, -math.inf)) == best for layer in by[best]
            ]
            ends = f"{min(by[best].values()):.2f} to {max(by[best].values()):.2f}"
            cells = [f"{means.get(over, math.nan):.2f}" for over in ("fan_out", "fan_in", "crossed")]
            lines.append([kind, name, *cells, best, ends, f"{sum(alike)} of {len(alike)}"])
    head = [
        "layer type",
        "model",
        "fan_out",
        "fan_in",
        "rows x columns",
        "highest of one mean",
        "its range over depth",
        "highest in so many layers",
    ]
    return Table(head, sorted(lines, key=lambda line: list(next(iter(runs.values())).ratios).index(line[0])), "Averaged ratios")


def draw(runs: Mapping[str, Run]) -> Figure:
    """Draw the ratios over depth: a row of panels for each size, a panel for each layer type.

    Args:
        runs: A run of each size.
    """
    figure, panels = type_panels(runs, "layer")
    for name, run in runs.items():
        for kind, by in run.ratios.items():
            for over, each in by.items():
                values = [value if math.isfinite(value) and value > 0 else math.nan for value in each.values()]
                panels[name, kind].plot(range(len(values)), values, color=COLOURS[over], marker="o", label=over)
            panels[name, kind].set_xlim(-0.5, max(map(len, by.values())) - 0.5)
    return finish_types(figure, panels)
