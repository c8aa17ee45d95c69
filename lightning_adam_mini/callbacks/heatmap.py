"""A figure of the heads' effective learning rates: layers x heads, one panel for queries and one for keys."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from lightning_adam_mini.callbacks.summary import ParameterRates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = {"q": "query", "k": "key"}


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
    """Draw log10 of the effective learning rate of each head.

    Args:
        parameters: The effective learning rates; those without heads are left out.

    Returns:
        A figure that no backend shows, or None if there is no head.

    Example:
        >>> from lightning_adam_mini.layout import BlockLayout
        >>> rates = torch.tensor([[0.1], [0.1], [0.2], [0.2]])
        >>> query = ParameterRates("blocks.0.q.weight", "query", BlockLayout.grouped((4, 4), "q:2x2"), rates)
        >>> [panel.get_title() for panel in draw_heads([query]).axes]
        ['query', '']
    """
    panels: dict[str, dict[str, list[float]]] = {letter: {} for letter in _PANELS}
    for parameter in parameters:
        names = parameter.layout.block_names()
        if len(names) != parameter.layout.num_blocks:  # not one value a head
            continue
        values = parameter.blocks().log10().tolist()
        for letter, rows in panels.items():
            heads = [value for name, value in zip(names, values, strict=True) if name.startswith(f"{letter}.")]
            if heads:
                rows[parameter.name.removesuffix(".weight")] = heads
    panels = {letter: rows for letter, rows in panels.items() if rows}
    if not panels:
        return None
    from matplotlib.figure import Figure

    height = max(len(rows) for rows in panels.values())
    width = max(len(heads) for rows in panels.values() for heads in rows.values())
    figure = Figure(figsize=(len(panels) * (3.5 + 0.3 * width), max(2.5, 1.2 + 0.28 * height)), layout="constrained")
    everything = [value for rows in panels.values() for heads in rows.values() for value in heads]
    image = None
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (letter, rows) in zip(axes, panels.items(), strict=True):
        table = torch.full((len(rows), width), torch.nan)
        for i, heads in enumerate(rows.values()):
            table[i, : len(heads)] = torch.tensor(heads)
        image = panel.imshow(table.numpy(), aspect="auto", interpolation="nearest", vmin=min(everything), vmax=max(everything))
        panel.set_title(_PANELS[letter])
        panel.set_xlabel("head")
        labels = list(rows) if panel is axes[0] or list(rows) != list(next(iter(panels.values()))) else [""] * len(rows)
        panel.set_yticks(range(len(rows)), labels, fontsize=7)
        panel.set_xticks(range(0, width, max(1, width // 8)))
    if image is not None:
        figure.colorbar(image, ax=list(axes), label="log10 of rate")
    return figure
