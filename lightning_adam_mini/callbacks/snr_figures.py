"""Figures of signal-to-noise ratios: along the run, and over depth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_adam_mini.analysis.derive_rules import fans, group_ratios
from lightning_adam_mini.analysis.snr_history import Averaged, SNRHistory, average_snr, averaged
from lightning_adam_mini.detection import ModelReport
from lightning_adam_mini.partition.rules import is_matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"fan_out": "#D55E00", "fan_in": "#0072B2", "all": "#009E73", "crossed": "#CC79A7"}
"""What is averaged, in colours that the colour-blind tell apart."""

Ratios = Mapping[str, Mapping[str, Mapping[str, float]]]


def named_ratios(report: ModelReport, averages: Mapping[str, Mapping[Any, float]]) -> dict[str, dict[str, dict[str, float]]]:
    """Ratios of matrices by layer type, by ``fan_out``, ``fan_in``, ``all`` or ``crossed``, and by parameter.

    Args:
        report: The model.
        averages: Ratios by parameter and dimensions.
    """
    out: dict[str, dict[str, dict[str, float]]] = {}
    for group, ratios in group_ratios(report, averages).items():
        name = next(name for members in ratios.values() for name in members)
        if is_matrix(report.by_name[name]):
            kinds = fans(ratios, len(report.by_name[name].shape))
            out[group] = {kind: dict(ratios[measured]) for kind, (_, measured) in kinds.items()}
            if "crossed" in ratios:
                out[group]["crossed"] = dict(ratios["crossed"])
    return out


def ratios_along(history: SNRHistory, report: ModelReport) -> list[dict[str, dict[str, dict[str, float]]]]:
    """Ratios as :func:`named_ratios` gives them, of each measurement along a run.

    Args:
        history: The measurements.
        report: The model.
    """
    names: list[tuple[str, Averaged]] = [(name, averaged(layout)) for name, layout in history.columns()]
    heads = [layout.lines is not None for _, layout in history.columns()]
    steps = []
    for row in history.table().tolist():
        found: dict[str, dict[Averaged, float]] = {}
        for (name, kept), head, snr in zip(names, heads, row, strict=True):
            if not head:
                found.setdefault(name, {})[kept] = snr
        steps.append(named_ratios(report, found))
    return steps


def draw_trajectories(history: SNRHistory, report: ModelReport, cutoff: float = 1.0) -> Figure:
    """Draw the ratios along the run: a panel a layer type, thin lines for tensors, thick ones for their mean.

    Args:
        history: The measurements.
        report: The model.
        cutoff: Where to draw the cut-off.
    """
    steps = ratios_along(history, report)
    groups = list(dict.fromkeys(group for step in steps for group in step))
    figure, axes = _panels(groups, "steps", cutoff)
    for group, panel in zip(groups, axes, strict=False):
        for kind, colour in COLOURS.items():
            members = list(dict.fromkeys(name for step in steps for name in step.get(group, {}).get(kind, {})))
            curves = {name: [step.get(group, {}).get(kind, {}).get(name, math.nan) for step in steps] for name in members}
            for curve in curves.values():
                panel.plot(history.steps, _finite(curve), color=colour, linewidth=0.5, alpha=0.4)
            if curves:
                mean = [average_snr(values) for values in zip(*curves.values(), strict=True)]
                panel.plot(history.steps, _finite(mean), color=colour, linewidth=2, label=kind)
    return _finish(figure, axes)


def draw_depth(history: SNRHistory, report: ModelReport, cutoff: float = 1.0) -> Figure:
    """Draw the ratios averaged over the run, over depth: a panel a layer type, a point a tensor.

    Args:
        history: The measurements.
        report: The model.
        cutoff: Where to draw the cut-off.
    """
    groups = named_ratios(report, history.averages())
    figure, axes = _panels(list(groups), "depth", cutoff)
    for (_, kinds), panel in zip(groups.items(), axes, strict=False):
        for kind, members in kinds.items():
            values = list(members.values())
            panel.plot(range(len(values)), _finite(values), color=COLOURS[kind], marker="o", markersize=3, linewidth=1, label=kind)
    return _finish(figure, axes)


def _finite(values: list[float]) -> list[float]:
    return [value if math.isfinite(value) and value > 0 else math.nan for value in values]


def _panels(groups: list[str], across: str, cutoff: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second to import; and pyplot would look for a display
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    columns = min(4, max(1, len(groups)))
    rows = max(1, -(-len(groups) // columns))
    figure = Figure(figsize=(2.6 * columns, 2.1 * rows + 0.3), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for i, panel in enumerate(axes):
        panel.set_visible(i < len(groups))
        if i < len(groups):
            panel.set_title(groups[i], fontsize=9)
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter(NullFormatter())
            panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            panel.axhline(cutoff, color="black", linewidth=0.8, linestyle=":")
            panel.tick_params(labelsize=7)
            panel.set_xlabel(across, fontsize=8)
            if i % columns == 0:
                panel.set_ylabel("SNR", fontsize=8)
    return figure, axes


def _finish(figure: Figure, axes: list[Axes]) -> Figure:
    handles = {label: handle for panel in axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles, title="averaged over", loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return figure
