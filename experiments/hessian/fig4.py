"""Figures 4 and 10-13: the Hessians of a small transformer's matrices, at initialisation and in training."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from experiments.figures import new_figure
from experiments.hessian.blocks import hessians, structure
from experiments.hessian.models import HEADS, LAYERS, train, transformer
from experiments.hessian.output import Found, heat_map
from experiments.tables import Table

PARTS = {
    "query": ("attn.q_proj", None),
    "key": ("attn.k_proj", None),
    "value": ("attn.v_proj", None),
    "attn. projection": ("attn.out_proj", None),
    "MLP up, 16 of 128 rows": ("mlp.up_proj", 16),
    "MLP down, 4 of 32 rows": ("mlp.down_proj", 4),
}
STAGES = (0, 100)
"""Steps of AdamW after which the Hessian is looked at."""


def make(seed: int = 0, quick: bool = False) -> Iterator[Found]:
    """Draw the figures.

    Args:
        seed: Of the weights and the sequence.
        quick: Whether to look at one layer at initialisation.
    """
    model, loss = transformer(seed)
    done, rows, figures = 0, list[dict[str, Any]](), dict[str, Figure]()
    for stage in STAGES[: 1 if quick else None]:
        value = train(model, loss, stage - done)
        done = stage
        layers = [0] if quick else range(LAYERS) if stage == 0 else [0, LAYERS - 1]
        drawn: dict[tuple[int, str], Tensor] = {}
        for layer in layers:
            wanted = {f"blocks.{layer}.{name}.weight": count for name, count in PARTS.values()}
            for part, (name, hessian, shape) in zip(PARTS, hessians(model, loss, wanted), strict=True):
                heads = HEADS if "attn." in name else None
                row: dict[str, Any] = {"step": stage, "loss": value, "layer": layer, "part": part, "parameter": name}
                found = structure(hessian, shape, heads)
                shares = {f"{kind}, {what}": share[what] for kind, share in found.items() for what in ("share", "null")}
                rows.append({**row, "shape": "x".join(map(str, shape)), **shares})
                drawn[layer, part] = hessian
        figures[f"fig4_step{stage}"] = draw(drawn, list(layers), stage, value)
    text = "Share of a Hessian's squared mass within blocks, and by chance (null); of its diagonal, in the best rank-one matrix. Exact."
    yield Found("fig4", "Figures 4 and 10-13: Hessians of a transformer's matrices", text, rows, table(rows), figures)


def draw(drawn: dict[tuple[int, str], Tensor], layers: list[int], stage: int, loss: float) -> Figure:
    """Draw a line of heat maps for each layer.

    Args:
        drawn: Hessians by layer and part.
        layers: The layers.
        stage: Steps of training.
        loss: The loss then.
    """
    figure, charts = new_figure(len(PARTS), len(layers), 2.1, 2.2)
    for chart, (layer, part) in zip(charts, product(layers, PARTS), strict=True):
        hessian = drawn[layer, part]
        blocks = HEADS if part in ("query", "key", "value", "attn. projection") else PARTS[part][1]
        heat_map(chart, hessian, f"layer {layer}: {part}\n|H| up to {float(hessian.abs().max()):.1e}", blocks)
    figure.suptitle(f"After {stage} steps, loss {loss:.3f}; lines: heads of attention, else output neurons", fontsize=10)
    return figure


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the numbers, averaged over layers.

    Args:
        rows: The numbers, one row a step, layer and part.
    """
    kinds = ("heads", "rows", "columns", "diagonal", "diagonal, rank one")
    lines = []
    for step in dict.fromkeys(row["step"] for row in rows):
        for part in PARTS:
            here = [row for row in rows if row["step"] == step and row["part"] == part]
            cells = []
            for kind in kinds:
                found = [(row[f"{kind}, share"], row[f"{kind}, null"]) for row in here if f"{kind}, share" in row]
                means = [sum(values) / len(values) for values in zip(*found, strict=True)]
                cells.append(f"{means[0]:.3f} ({means[1]:.3f})" if found else "")
            lines.append([str(step), part, *cells])
    return Table(["steps", "part", *(f"{kind} (null)" for kind in kinds)], lines)
