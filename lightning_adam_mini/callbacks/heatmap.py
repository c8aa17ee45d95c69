"""Figures of effective learning rates: layers x heads where heads are known, layers x quantiles of lines elsewhere."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from lightning_adam_mini.callbacks.summary import ParameterRates, quantiles, sample
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.lines import parse_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = {"q": "query", "k": "key", "v": "value"}
_BINS = 32


def require_matplotlib() -> None:
    """Refuse to go on without matplotlib.

    Raises:
        ModuleNotFoundError: If it is not installed.

    Example:
        >>> require_matplotlib()
    """
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            "heatmap=True needs matplotlib, which is not installed: run 'pip install matplotlib' or leave heatmap out."
        )


def draw_heads(parameters: Iterable[ParameterRates]) -> Figure | None:
    """Draw log10 of the effective learning rate of each head of queries, keys and values: layers x heads.

    A head of which finer rates are kept has the one that the mean of its second moments gives.

    Args:
        parameters: The effective learning rates; those without heads are left out.

    Returns:
        A figure that no backend shows, or None if there is no head.

    Example:
        >>> rates = torch.tensor([[0.1], [0.1], [0.2], [0.2]])
        >>> query = ParameterRates("blocks.0.q.weight", "query", BlockLayout.grouped((4, 4), "q:2x2"), [rates])
        >>> [panel.get_title() for panel in draw_heads([query]).axes]
        ['query', '']
    """
    found = {(letter, parameter.name): rates for parameter in parameters for letter, rates in _heads(parameter)[1].items()}
    panels: dict[str, dict[str, list[float]]] = {}
    logs = _log10_on_host(found)
    for (letter, name), values in logs.items():
        panels.setdefault(letter, {})[name.removesuffix(".weight")] = values
    panels = {letter: panels[letter] for letter in _PANELS if letter in panels}
    if not panels:
        return None
    from matplotlib.figure import Figure

    height = max(len(rows) for rows in panels.values())
    width = max(len(heads) for rows in panels.values() for heads in rows.values())
    figure = Figure(figsize=(len(panels) * (3.5 + 0.3 * width), max(2.5, 1.2 + 0.28 * height)), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (letter, rows) in zip(axes, panels.items(), strict=True):
        table = torch.full((len(rows), width), torch.nan)
        for i, heads in enumerate(rows.values()):
            table[i, : len(heads)] = torch.tensor(heads)
        panel.imshow(table.numpy(), aspect="auto", interpolation="nearest")
        panel.set_title(_PANELS[letter])
        panel.set_xlabel("head")
        _label(panel, rows, panel is axes[0] or list(rows) != list(next(iter(panels.values()))))
        panel.set_xticks(range(0, width, max(1, width // 8)))
    return _with_one_scale(figure, list(axes), chain.from_iterable(logs.values()))


def draw_lines(parameters: Iterable[ParameterRates]) -> Figure | None:
    """Draw log10 of the effective learning rates of matrices and convolutions: a panel a layer type, layers x quantiles.

    Of factored ones rows and columns have a panel each. What :func:`draw_heads` draws, vectors, and tensors of one rate are left out.

    Args:
        parameters: The effective learning rates.

    Returns:
        A figure that no backend shows, or None if there is nothing to draw.

    Example:
        >>> rates = [torch.rand(8, 1), torch.rand(1, 6)]
        >>> fc = ParameterRates("fc.weight", "linear", BlockLayout.factored((8, 6)), rates)
        >>> [panel.get_title() for panel in draw_lines([fc]).axes]
        ['linear: rows', 'linear: columns', '']
    """
    found: dict[tuple[str, str, str], Tensor] = {}
    for parameter in parameters:
        if sum(size > 1 for size in parameter.layout.shape) < 2:
            continue
        heads, _ = _heads(parameter)
        for i, blocks in enumerate(parameter.blocks()):
            if blocks.numel() > 1 and i != heads:
                found[parameter.group, _kind(parameter.layout, i), parameter.name] = quantiles(sample(blocks), _BINS)
    panels: dict[str, dict[str, dict[str, list[float]]]] = {}
    logs = _log10_on_host(found)
    for (group, kind, name), values in logs.items():
        panels.setdefault(group, {}).setdefault(kind, {})[name.removesuffix(".weight")] = values
    if not panels:
        return None
    from matplotlib.figure import Figure

    width = max(map(len, panels.values()))
    heights = [0.6 + 0.16 * max(map(len, kinds.values())) for kinds in panels.values()]
    figure = Figure(figsize=(3 + 3 * width, 0.6 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), width, squeeze=False, height_ratios=heights)
    used = []
    for line, (group, kinds) in zip(axes, panels.items(), strict=True):
        for panel in line[len(kinds) :]:
            panel.remove()
        for panel, (kind, rows) in zip(line, kinds.items(), strict=False):
            extent = (0, 100, len(rows) - 0.5, -0.5)
            panel.imshow(torch.tensor([*rows.values()]).numpy(), aspect="auto", interpolation="nearest", extent=extent)
            used.append(panel)
            panel.set_title(f"{group}: {kind}", fontsize=9)
            panel.set_xticks([0, 50, 100], ["lowest", "median", "highest"], fontsize=7)
            _label(panel, rows, panel is line[0] or list(rows) != list(next(iter(kinds.values()))))
    return _with_one_scale(figure, used, chain.from_iterable(logs.values()))


def _kind(layout: BlockLayout, margin: int) -> str:
    if layout.is_factored:
        return ("rows", "columns")[margin]
    return "elements" if layout.is_per_parameter else "blocks" if layout.lines is not None else str(layout)


def _heads(parameter: ParameterRates) -> tuple[int | None, dict[str, Tensor]]:
    """The margin whose lines are heads, and the rates of the heads of each role; None and nothing if there are none."""
    heads = parameter.heads or parameter.layout
    if heads.axis is None or heads.lines is None:
        return None, {}
    lines = BlockLayout.each_line(heads.shape, heads.axis).block_shape
    margin = next((i for i, rates in enumerate(parameter.rates) if tuple(rates.shape) == lines), None)
    if margin is None:
        return None, {}
    groups = BlockLayout((heads.shape[heads.axis],), (), 0, heads.lines)
    names = groups.block_names()
    sizes = Counter(role if head < 0 else f"{role}.{head}" for role, head in parse_lines(heads.lines).expand())
    rates = (groups.average(parameter.roots()[margin].flatten().square()).sqrt() + parameter.floor).reciprocal()
    found = {}
    for letter in _PANELS:
        here = [i for i, name in enumerate(names) if name.startswith(f"{letter}.")]
        if any(sizes[names[i]] > 1 for i in here):  # else each is a line
            found[letter] = rates[here]
    return (margin if found else None), found


_Key = TypeVar("_Key")


def _log10_on_host(found: Mapping[_Key, Tensor]) -> dict[_Key, list[float]]:
    """log10 of all values, in one transfer."""
    if not found:
        return {}
    device = next(iter(found.values())).device
    host = torch.cat([values.to(device) for values in found.values()]).log10().cpu()
    return {key: part.tolist() for key, part in zip(found, host.split([len(values) for values in found.values()]), strict=True)}


def _label(panel: Axes, rows: Collection[str], shown: bool) -> None:
    panel.set_yticks(range(len(rows)), list(rows) if shown else [""] * len(rows), fontsize=7)


def _with_one_scale(figure: Figure, axes: list[Axes], values: Iterable[float]) -> Figure:
    """Give the images of all panels the same colours, and one bar that tells them."""
    finite = [value for value in values if math.isfinite(value)]
    images = [image for panel in axes for image in panel.images]
    for image in images:
        image.set_clim(min(finite, default=0.0), max(finite, default=1.0))
    figure.colorbar(images[0], ax=axes, label="log10 of rate")
    return figure
