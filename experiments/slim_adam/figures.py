"""Figures of SlimAdam's experiments."""

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from experiments.figures import add_legend, new_figure, styles
from experiments.slim_adam.tables import by_setting
from lightning_adam_mini.analysis import average_snr
from lightning_adam_mini.callbacks.snr_figures import COLOURS

if TYPE_CHECKING:  # a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from experiments.slim_adam.room import Run

MARKERS = ("-", "--", ":", "-.")
Curves = Mapping[str, Mapping[float, Mapping[str, Mapping[str, Mapping[str, float]]]]]


def draw_sweep(runs: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw the final test metric over learning rates, a line an optimizer.

    Args:
        runs: The results of a sweep.
    """
    figure, (axes,) = new_figure(width=5.6, height=3.6)
    curves: dict[str, dict[float, list[float]]] = {}
    for (name, lr), values in by_setting(runs).items():
        if lr is not None:
            curves.setdefault(name, {})[lr] = list(values.values())
    plot_over_rates(axes, curves, f"test {runs[0]['headline']['title']}")
    add_legend(axes)
    return figure


def plot_over_rates(axes: "Axes", curves: Mapping[str, Mapping[float, Sequence[float]]], label: str) -> None:
    """Plot means over learning rates, a line for each, with the range over seeds shaded; what is not finite is left out.

    Args:
        axes: The chart.
        curves: Values of each seed, by line and by learning rate.
        label: What they are.
    """
    for (name, rates), style in zip(curves.items(), styles(list(curves)).values(), strict=True):
        points = {lr: values for lr, values in sorted(rates.items()) if all(map(math.isfinite, values))}
        axes.plot(list(points), [fmean(values) for values in points.values()], marker="o", label=name, **style)
        low, high = ([end(values) for values in points.values()] for end in (min, max))
        axes.fill_between(list(points), low, high, color=style["color"], alpha=0.08)
    lrs = sorted({lr for rates in curves.values() for lr in rates})
    axes.set_xscale("log")
    axes.set_xticks(lrs, [f"{lr:g}" for lr in lrs])
    axes.minorticks_off()
    axes.set_xlabel("peak learning rate")
    axes.set_ylabel(label)


def draw_ratios(curves: Curves, argument: str) -> "Figure":
    """Draw averaged signal-to-noise ratios over learning rates: a panel a layer type, a colour for what is averaged.

    Args:
        curves: By value of the varied argument, and by learning rate: ratios as `derive` gives them.
        argument: The varied argument; empty if none is.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    groups = list(dict.fromkeys(group for rates in curves.values() for ratios in rates.values() for group in ratios))
    lrs = sorted({lr for rates in curves.values() for lr in rates})
    columns = min(4, max(1, len(groups)))
    rows = max(1, -(-len(groups) // columns))
    figure, axes = new_figure(columns, rows, 2.6, 2.1 + 0.3 / rows)
    for i, panel in enumerate(axes):
        panel.set_visible(i < len(groups))
    for group, panel in zip(groups, axes, strict=False):
        for (variant, rates), style in zip(curves.items(), MARKERS, strict=False):
            for kind, colour in COLOURS.items():
                means = [average_snr(rates[lr].get(group, {}).get(kind, {}).values()) for lr in sorted(rates)]
                label = f"{kind}, {argument}={variant}" if variant else kind
                finite = [mean if math.isfinite(mean) else math.nan for mean in means]
                panel.plot(sorted(rates), finite, color=colour, linestyle=style, marker="o", markersize=3, linewidth=1.2, label=label)
        panel.set_title(group, fontsize=9)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(lrs, [f"{lr:g}" for lr in lrs])
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
        panel.tick_params(labelsize=7)
        panel.set_xlabel("peak learning rate", fontsize=8)
    axes[0].set_ylabel("averaged SNR", fontsize=8)
    handles = {label: handle for panel in axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=3, fontsize=8)
    return figure


def mean_ratios(runs: "Sequence[Run]") -> dict[str, dict[str, dict[str, float]]]:
    """Return the averaged ratios of equal models, averaged over their runs.

    Args:
        runs: Measured runs of one model, such as those of several seeds.
    """
    return {
        group: {over: {name: average_snr(run.ratios[group][over][name] for run in runs) for name in each} for over, each in by.items()}
        for group, by in runs[0].ratios.items()
    }


def type_panels(runs: "Mapping[str, Run]", across: str) -> "tuple[Figure, dict[tuple[str, str], Axes]]":
    """Return a figure with a row of panels for each run and a panel for each layer type, and the panels by both.

    Args:
        runs: Measured runs by name.
        across: What lies along the panels.
    """
    kinds = list(dict.fromkeys(kind for run in runs.values() for kind in run.ratios))
    figure, axes = new_figure(len(kinds), len(runs), 1.9, 2.2)
    panels = dict(zip(itertools.product(runs, kinds), axes, strict=True))
    for (name, kind), panel in panels.items():
        panel.set_title(f"{kind}\n{name}", fontsize=8)
        panel.set_xlabel(across, fontsize=8)
        panel.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
        panel.tick_params(labelsize=7)
    return figure, panels


def finish_types(figure: "Figure", panels: "Mapping[tuple[str, str], Axes]") -> "Figure":
    """Give the panels one logarithmic scale and the figure a legend, once all is drawn.

    Args:
        figure: The figure.
        panels: Its panels.
    """
    from matplotlib.ticker import MaxNLocator, NullFormatter

    ends = [panel.dataLim.intervaly for panel in panels.values()]
    for panel in panels.values():
        panel.set_yscale("log")
        panel.set_ylim(0.7 * min(low for low, _ in ends), 1.4 * max(high for _, high in ends))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    handles = {label: handle for panel in panels.values() for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, title="averaged over", loc="outside upper center", ncols=4, fontsize=8)
    return figure
