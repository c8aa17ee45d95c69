"""How results are written: Markdown for people, CSV for programs, a figure."""

from __future__ import annotations

import csv
import io
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import torch

from recipes.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS = "#c0392b"
THEIRS = "#5d6d7e"


def conditions(device: torch.device) -> str:
    """Return what a reader must know of the machine, in a sentence.

    Args:
        device: Where it was measured.
    """
    where = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU, {count(torch.get_num_threads(), 'thread')}"
    )
    return f"torch {torch.__version__}, {where}, float32."


def count(number: int, noun: str) -> str:
    """Return a number of things.

    Args:
        number: How many.
        noun: Of what, in the singular.

    Example:
        >>> count(1, "round"), count(20, "round")
        ('1 round', '20 rounds')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def spread(values: Sequence[float]) -> Interval:
    """Return the median and the quartiles.

    Args:
        values: At least one.

    Example:
        >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
        Interval(centre=3.0, low=2.0, high=4.0)
    """
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return Interval(median(values), low, high)


def paired(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Return the median of the ratios within a round, with its 95 % interval by order statistics, from 6 rounds on.

    Args:
        values: One a round.
        baseline: One a round.

    Example:
        >>> paired([float(x) for x in range(1, 12)], [1.0] * 11)
        Interval(centre=6.0, low=2.0, high=10.0)
    """
    ratios = sorted(ours / theirs for ours, theirs in zip(values, baseline, strict=True))
    n = len(ratios)
    # As recipes.statistics.median_interval, but without SciPy, which is not installed wherever something is measured.
    tails = accumulate(math.comb(n, k) / 2**n for k in range(n + 1))
    rank = next(k for k, tail in enumerate(tails) if tail >= 0.025)
    return Interval(median(ratios), ratios[rank - 1], ratios[-rank]) if rank else Interval(median(ratios), math.nan, math.nan)


def milliseconds(values: Sequence[float]) -> str:
    """Return seconds in milliseconds, with quartiles.

    Args:
        values: Seconds.

    Example:
        >>> milliseconds([0.001, 0.002, 0.003])
        '2.00 (1.50-2.50)'
    """
    middle, low, high = (value * 1e3 for value in spread(values))
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2 if middle >= 1 else 4
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table.

    Args:
        head: Its columns.
        rows: Its rows.

    Example:
        >>> print(markdown_table(["a", "b"], [[1, 2]]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    r"""Return rows as CSV; what a row does not have is empty.

    Args:
        rows: Values by column.

    Example:
        >>> csv_text([{"a": 1}, {"a": 2, "b": 3}])
        'a,b\n1,\n2,3\n'
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def new_figure(columns: int, lines: int = 1, width: float = 5.0, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """Return a figure that needs no display, and its charts.

    Args:
        columns: Charts side by side.
        lines: Charts above each other.
        width: Inches a chart.
        height: Inches a chart.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(lines, columns, squeeze=False).flat)


def is_ours(rival: str) -> bool:
    """Return whether a rival is this package's optimizer.

    Args:
        rival: Its name.
    """
    return rival == "AdamMini" or (rival.startswith("AdamMini ") and "(" not in rival)


def colour(rival: str) -> str:
    """Return the colour of a bar.

    Args:
        rival: Whose.
    """
    return OURS if is_ours(rival) else THEIRS


def line_style(rival: str, number: int) -> dict[str, Any]:
    """Return how the line of a rival is drawn: ours thick and red, each with dashes of its own.

    Args:
        rival: Whose.
        number: Its place among the rivals.
    """
    if is_ours(rival):
        dashes = {"AdamMini": "-", "AdamMini fused=False": "--"}.get(rival, ":")
        return {"label": rival, "color": OURS, "marker": "o", "markersize": 4, "lw": 2.2, "ls": dashes}
    colours = [f"C{place}" for place in range(10) if place != 3]  # without matplotlib's red
    return {"label": rival, "color": colours[number % len(colours)], "marker": ".", "lw": 1.1}


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
    axes.barh(names, centres, xerr=errors, color=[colour(name) for name in names], error_kw={"lw": 1, "ecolor": "#17202a"})
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
        axes.axvline(line, color="#17202a", lw=0.8, ls="--")
    axes.set_title(title)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def write(out: Path, name: str, text: str, rows: Sequence[Mapping[str, object]], figure: Figure | None = None) -> None:
    """Write the results of a benchmark and show them.

    Args:
        out: The folder.
        name: The benchmark.
        text: Markdown.
        rows: For the CSV file.
        figure: The figure.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{name}.md", out / f"{name}.csv"]
    if figure is not None:
        files.append(out / f"{name}.png")
        figure.savefig(files[-1], dpi=130)
        text = f"{text.rstrip()}\n\n![{name}]({name}.png)\n"
    files[0].write_text(text, encoding="utf-8")
    files[1].write_text(csv_text(rows), encoding="utf-8")
    sys.stdout.write(f"\n{text}\nWritten to {', '.join(map(str, files))}\n")


def progress(text: str) -> None:
    """Tell who waits what is being done.

    Args:
        text: A line.
    """
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
