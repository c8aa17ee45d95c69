"""Figures 4 and 10-13: the Hessians of a small transformer's matrices, at initialisation and in training."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.figures import new_figure, save
from experiments.hessian.blocks import hessians, structure
from experiments.hessian.models import HEADS, LAYERS, train, transformer
from experiments.hessian.output import heat_map, write
from lightning_adam_mini.table import align

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


def make(out: Path, seed: int = 0, quick: bool = False) -> str:
    """Draw the figures, and return a table.

    Args:
        out: Folder of the files.
        seed: Of the weights and the sequence.
        quick: Whether to look at one layer at initialisation.
    """
    model, loss = transformer(seed)
    done, numbers = 0, []
    for stage in STAGES[: 1 if quick else None]:
        value = train(model, loss, stage - done)
        done = stage
        layers = [0] if quick else range(LAYERS) if stage == 0 else [0, LAYERS - 1]
        drawn: dict[tuple[int, str], Tensor] = {}
        for layer in layers:
            rows = {f"blocks.{layer}.{name}.weight": count for name, count in PARTS.values()}
            for part, (name, hessian, shape) in zip(PARTS, hessians(model, loss, rows), strict=True):
                heads = HEADS if "attn." in name else None
                row: dict[str, Any] = {"step": stage, "loss": value, "layer": layer, "part": part, "parameter": name}
                numbers.append({**row, "shape": shape, **structure(hessian, shape, heads)})
                drawn[layer, part] = hessian
        draw(out / f"fig4_step{stage}.png", drawn, list(layers), stage, value)
    write(out, "fig4", {"rows": numbers})
    return table(numbers)


def draw(file: Path, drawn: dict[tuple[int, str], Tensor], layers: list[int], stage: int, loss: float) -> None:
    """Draw a line of heat maps for each layer.

    Args:
        file: The PNG.
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
    save(figure, file)


def table(numbers: list[dict[str, Any]]) -> str:
    """Return the numbers, averaged over layers.

    Args:
        numbers: One a step, layer and part.
    """
    kinds = ("heads", "rows", "columns", "diagonal", "diagonal, rank one")
    rows = [["step", "part", *(f"{kind} (null)" for kind in kinds)]]
    for step in dict.fromkeys(row["step"] for row in numbers):
        for part in PARTS:
            here = [row for row in numbers if row["step"] == step and row["part"] == part]
            cells = []
            for kind in kinds:
                found = [(row[kind]["share"], row[kind]["null"]) for row in here if kind in row]
                means = [sum(values) / len(values) for values in zip(*found, strict=True)]
                cells.append(f"{means[0]:.3f} ({means[1]:.3f})" if found else "")
            rows.append([str(step), part, *cells])
    return "\n".join(align(rows, "><" + ">" * len(kinds)))
