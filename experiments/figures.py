"""The one figure room: their style, the colours of rivals, and how they are written."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.statistics import Interval
from recipes.files import write_atomically

if TYPE_CHECKING:  # a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, OURS, THEIRS = "#1f2328", "#d55e00", "#6e7f8d"
STYLE: Any = {
    **{f"{part}.facecolor": "#ffffff" for part in ("figure", "axes", "savefig", "legend")},  # opaque: readable on a dark page too
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.color": "#d8dee4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 3,
    "savefig.transparent": False,
}
# Okabe and Ito's colours, which the colour-blind tell apart; with a line of its own each, for a print without colours.
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c6d31", "#7b4ea3")
LINES = ("-", "--", "-.", ":")
ALWAYS = {  # what most figures have, looks the same in each
    "adamw": (INK, "-"),
    "AdamW": (INK, "-"),
    "AdamW fused": (INK, "-"),
    "auto": (OURS, "-"),
    "AdamMini": (OURS, "-"),
    "auto:8bit": (OURS, ":"),
    "AdamMini 8-bit momentum": (OURS, ":"),
    "adam_mini": (OURS, "--"),
    "AdamMini adam_mini": (OURS, "--"),
}


def styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the colour and the line of each optimizer in a figure.

    Args:
        names: The optimizers, each once.

    Example:
        >>> styles(["adamw", "lion", "auto"])["auto"]
        {'color': '#d55e00', 'linestyle': '-'}
    """
    others = iter([(colour, LINES[(i + shift) % len(LINES)]) for shift in range(len(LINES)) for i, colour in enumerate(COLOURS)])
    chosen = {name: ALWAYS[name] if name in ALWAYS else next(others) for name in names}
    return {name: {"color": colour, "linestyle": line} for name, (colour, line) in chosen.items()}


def colour(rival: str) -> str:
    """Return the colour of a rival's bar: this package's optimizer stands out.

    Args:
        rival: Its title.
    """
    return OURS if rival == "AdamMini" or (rival.startswith("AdamMini ") and "(" not in rival) else THEIRS


def new_figure(columns: int = 1, lines: int = 1, width: float = 6.0, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """Return a figure that needs no display, and its charts.

    Args:
        columns: Charts side by side.
        lines: Charts above each other.
        width: Inches a chart.
        height: Inches a chart.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot would look for a display
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, list(figure.subplots(lines, columns, squeeze=False).flat)


def add_legend(axes: Axes, place: str = "best") -> None:
    """Give a chart its legend, beside it where that is long.

    Args:
        axes: The chart.
        place: Where it goes where it is short.
    """
    long = len(axes.get_legend_handles_labels()[0]) > 8
    where: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "fontsize": 7} if long else {"loc": place}
    axes.legend(**where)


def save(figure: Figure, file: Path) -> None:
    """Write a figure as a PNG, whole or not at all.

    Args:
        figure: The figure.
        file: The PNG.
    """
    from matplotlib import rc_context

    image = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(image, format="png", dpi=130)
    write_atomically(file, image.getvalue())


def bars(
    axes: Axes, values: Mapping[str, Interval], title: str, label: str, form: str, line: float | None = None, log: bool = False
) -> None:
    """Draw a horizontal bar for each rival, with its interval and its number.

    Args:
        axes: The chart.
        values: Estimates by rival.
        title: The chart's title.
        label: What is measured.
        form: Format of the numbers.
        line: Where to draw a vertical line.
        log: Whether the axis is logarithmic.
    """
    names = list(values)[::-1]
    centres = [values[name].centre for name in names]
    # Too few rounds for an interval: nan, which draws none.
    errors = [
        [max(0.0, v.centre - v.low) for v in map(values.__getitem__, names)],
        [v.high - v.centre for v in map(values.__getitem__, names)],
    ]
    axes.barh(names, centres, xerr=errors, color=[colour(name) for name in names], error_kw={"lw": 1, "ecolor": INK})
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high**1.25 / max(low, 1e-12) ** 0.25 if log else high * 1.2)
    for name, centre in zip(names, centres, strict=True):
        right = values[name].high
        axes.annotate(
            f"{centre:{form}}", (right if right == right else centre, name), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    if line is not None:
        axes.axvline(line, color=INK, lw=0.8, ls="--")
    axes.set_title(title)
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")
