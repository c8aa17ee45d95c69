"""The figure of a comparison: the validation metric over the training steps, a line and a band for each optimizer."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from recipes.compare.results import Result
from recipes.files import write_atomically

STYLES = ("-", "--", "-.", ":")  # the lines of a print without colours
COLOURS = (
    "#000000",
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # Okabe and Ito's, which the colour-blind tell apart


@dataclass(frozen=True)
class Curve:
    """One optimizer's validation metric over its seeds.

    Args:
        label: Its name in the legend.
        steps: The training steps at which all seeds validated.
        means: Mean over seeds at each of them.
        spreads: Standard deviation over seeds; zero for a single one.
    """

    label: str
    steps: tuple[int, ...]
    means: tuple[float, ...]
    spreads: tuple[float, ...]


def build_curve(results: Sequence[Result]) -> Curve:
    """Average the validation metric over the seeds of one optimizer.

    Args:
        results: Its results at one learning rate.
    """
    first = results[0]
    metric = f"val/{first.headline.metric}"
    seeds = [{int(row["step"]): row[metric] for row in result.curve if metric in row} for result in results]
    steps = [step for step in seeds[0] if all(math.isfinite(seed.get(step, math.nan)) for seed in seeds)]
    columns = [[seed[step] for seed in seeds] for step in steps]
    return Curve(
        label=first.run.optimizer + ("" if first.run.lr is None else f", lr {first.run.lr:g}"),
        steps=tuple(steps),
        means=tuple(fmean(column) for column in columns),
        spreads=tuple(stdev(column) if len(column) > 1 else 0.0 for column in columns),
    )


def draw(chosen: Mapping[str, Sequence[Result]], file: Path) -> bool:
    """Draw the curves and write them as a PNG.

    Args:
        chosen: The results of each optimizer at its learning rate.
        file: Where to write.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second to import; and pyplot would look for a display
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves = [curve for results in chosen.values() if (curve := build_curve(results)).steps]
    if not curves:
        return False
    headline = next(iter(chosen.values()))[0].headline
    seeds = max(len(results) for results in chosen.values())
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, curve in enumerate(curves):
        colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
        lows = [mean - spread for mean, spread in zip(curve.means, curve.spreads, strict=True)]
        highs = [mean + spread for mean, spread in zip(curve.means, curve.spreads, strict=True)]
        axes.fill_between(curve.steps, lows, highs, facecolor=(colour, 0.12), edgecolor=(colour, 0.5), linestyle=style, linewidth=0.5)
        marker = "o" if len(curve.steps) <= 20 else None
        axes.plot(curve.steps, curve.means, color=colour, linestyle=style, linewidth=1.5, marker=marker, markersize=3, label=curve.label)
    axes.set_xlabel("training step")
    spread = f" (mean ± sd of {seeds} seeds)" if seeds > 1 else ""
    axes.set_ylabel(f"validation {headline.title}{spread}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right" if headline.mode == "max" else "upper right")
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomically(file, image.getvalue())
    return True
