"""The figures of a comparison: validation metrics and training loss over the steps, a line for each optimizer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING

from experiments.compare.results import Finished
from experiments.compare.spikes import find_spikes
from experiments.figures import add_legend, new_figure, styles

if TYPE_CHECKING:  # a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHED = 11  # training losses whose median is drawn


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


def build_curve(results: Sequence[Finished], name: str | None = None) -> Curve:
    """Average a validation metric over the seeds of one optimizer.

    Args:
        results: Its results at one learning rate.
        name: The metric; the headline if none.
    """
    first = results[0]
    metric = f"val/{name or first.headline.metric}"
    seeds = [{int(row["step"]): row[metric] for row in result.curve if metric in row} for result in results]
    steps = [step for step in seeds[0] if all(math.isfinite(seed.get(step, math.nan)) for seed in seeds)]
    columns = [[seed[step] for seed in seeds] for step in steps]
    return Curve(
        label=label_of(first),
        steps=tuple(steps),
        means=tuple(fmean(column) for column in columns),
        spreads=tuple(stdev(column) if len(column) > 1 else 0.0 for column in columns),
    )


def label_of(result: Finished) -> str:
    """Return how legends call an optimizer.

    Args:
        result: One of its results.
    """
    return result.run.optimizer + ("" if result.run.setting.lr is None else f", lr {result.run.setting.text()}")


def draw(chosen: Mapping[str, Sequence[Finished]]) -> "Figure | None":
    """Draw the validation curves, with a band of a standard deviation; nothing where no run validated while it trained.

    What the recipe measures beside its headline is drawn below.

    Args:
        chosen: The results of each optimizer at its setting.
    """
    headline = next(iter(chosen.values()))[0].headline
    curves = {name: curve for name, results in chosen.items() if (curve := build_curve(results)).steps}
    if not curves:
        return None
    seeds = max(len(results) for results in chosen.values())
    spread = f" (mean ± sd of {seeds} seeds)" if seeds > 1 else ""
    figure, charts = new_figure(lines=1 + len(headline.beside))
    _draw_curves(charts[0], curves, f"validation {headline.title}{spread}")
    for axes, metric in zip(charts[1:], headline.beside, strict=True):
        _draw_curves(axes, {name: build_curve(chosen[name], metric) for name in curves}, f"validation {metric}{spread}")
    add_legend(charts[0], "lower right" if headline.mode == "max" else "upper right")
    return figure


def _draw_curves(axes: "Axes", curves: Mapping[str, Curve], title: str) -> None:
    from matplotlib.ticker import MaxNLocator  # a second to import

    for name, style in styles(list(curves)).items():
        curve = curves[name]
        lows = [mean - spread for mean, spread in zip(curve.means, curve.spreads, strict=True)]
        highs = [mean + spread for mean, spread in zip(curve.means, curve.spreads, strict=True)]
        colour, line = style["color"], style["linestyle"]
        axes.fill_between(curve.steps, lows, highs, facecolor=(colour, 0.12), edgecolor=(colour, 0.5), linestyle=line, linewidth=0.5)
        marker = "o" if len(curve.steps) <= 20 else None
        axes.plot(curve.steps, curve.means, **style, marker=marker, label=curve.label)
    axes.set_xlabel("training step")
    axes.set_ylabel(title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def draw_losses(chosen: Mapping[str, Sequence[Finished]]) -> "Figure":
    """Draw the training loss of each optimizer's first run, a running median, with a cross where a loss spike begins.

    Args:
        chosen: The results of each optimizer at its setting.
    """
    figure, (axes,) = new_figure()
    for name, style in styles(list(chosen)).items():
        results, losses = chosen[name], chosen[name][0].losses
        smooth = [median(losses[max(0, step - SMOOTHED + 1) : step + 1]) for step in range(len(losses))]
        axes.plot(range(1, len(losses) + 1), smooth, **style, linewidth=1.0, label=label_of(results[0]))
        spikes = find_spikes(losses)
        axes.plot([step + 1 for step in spikes], [losses[step] for step in spikes], "x", color=style["color"], markersize=5)
    axes.set_xlabel("training step")
    axes.set_ylabel(f"training loss (median of {SMOOTHED} steps)")
    add_legend(axes, "upper right")
    return figure
