"""Figure 14: the MLP of the last layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from experiments.figures import new_figure
from experiments.hessian.blocks import hessians, structure
from experiments.hessian.models import LAYERS, train, transformer
from experiments.hessian.output import Found, heat_map
from experiments.hessian.quadratic import adam_scale, best_rate, condition, descend
from experiments.tables import Table

NAME, ROWS, STEPS, RIDGE = f"blocks.{LAYERS - 1}.mlp.up_proj.weight", 16, 200, 1e-3


def positive(hessian: Tensor) -> Tensor:
    """Return a matrix with its eigenvalues raised to RIDGE of the largest, because descent on negative curvature has no end.

    Args:
        hessian: Symmetric matrix.
    """
    values, vectors = torch.linalg.eigh((hessian + hessian.T) / 2)
    return vectors @ torch.diag(values.clamp_min(RIDGE * float(values[-1]))) @ vectors.T


def compare(hessian: Tensor, seed: int) -> dict[str, Any]:
    """Return what one rate and Adam reach on the quadratic of a matrix, from several starts.

    Args:
        hessian: Symmetric matrix with positive eigenvalues.
        seed: Of the starts.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = [torch.randn(len(hessian), generator=generator, dtype=torch.float64) for _ in range(5)]
    rate = torch.tensor(best_rate(hessian), dtype=torch.float64)
    scales = [adam_scale(hessian, start) for start in starts]
    curves = {
        "one rate": [descend(hessian, start, rate, STEPS) for start in starts],
        "Adam": [descend(hessian, start, scale, STEPS) for start, scale in zip(starts, scales, strict=True)],
    }
    roots = [scale.sqrt() for scale in scales]
    scaled = sorted(condition(root[:, None] * hessian * root) for root in roots)[len(roots) // 2]
    return {"curves": curves, "condition": {"one rate": condition(hessian), "Adam": scaled}}


def make(seed: int = 0, quick: bool = False) -> Iterator[Found]:
    """Draw the figure.

    Args:
        seed: Of the weights and the sequence.
        quick: Whether to take fewer rows, at initialisation.
    """
    model, loss = transformer(seed)
    stages = (0,) if quick else (0, 100)
    figure, charts = new_figure(3, len(stages), 3.6, 3.2)
    head = ["steps", "within", "share", "null", "way", "condition number", "loss after 50 steps", "after 200"]
    cells, rows, facts = list[list[str]](), list[dict[str, Any]](), dict[str, Any]()
    for i, stage in enumerate(stages):
        line = charts[3 * i : 3 * i + 3]
        value = train(model, loss, stage)
        ((_, hessian, shape),) = hessians(model, loss, {NAME: 4 if quick else ROWS})
        values = torch.linalg.eigvalsh(hessian)
        found, compared = structure(hessian, shape, None), compare(positive(hessian), seed)
        heat_map(line[0], hessian, f"after {stage} steps, loss {value:.3f}\n|H| of {shape[0]} neurons of {NAME}", shape[0])
        line[1].hist((values / values.abs().max()).numpy(), bins=60, color="#0072B2", log=True)
        line[1].set_title("eigenvalues over the largest", fontsize=9)
        for way, colour in (("one rate", "#d55e00"), ("Adam", "#1f2328")):
            curves = torch.tensor(compared["curves"][way])
            line[2].plot(curves.T.clamp_min(1e-12), color=colour, linewidth=0.8, label=[way, *("_" * (len(curves) - 1))])
            after = [float(curves[:, step].median()) for step in (50, STEPS)]
            share = found["rows" if way == "one rate" else "diagonal"]
            label = "rows" if way == "one rate" else "diagonal"
            texts = [str(stage), label, f"{share['share']:.2f}", f"{share['null']:.3f}", way]
            cells.append([*texts, f"{compared['condition'][way]:.3g}", *(f"{loss_after:.2g}" for loss_after in after)])
            numbers = {"after_50": after[0], "after_200": after[1], "condition": compared["condition"][way]}
            rows.append({"step": stage, "way": way, **numbers, "within": label, "share": share["share"], "null": share["null"]})
        line[2].set_yscale("log")
        line[2].set_title("descent on its quadratic", fontsize=9)
        line[2].legend(fontsize=8, frameon=False)
        small = float((values.abs() < 1e-2 * values.abs().max()).double().mean())
        facts[f"step {stage}"] = {"loss": value, "eigenvalues_below_1_percent": small}
    text = f"{NAME}: the Hessian of its first rows, eigenvalues raised to at least {RIDGE:g} of the largest for the descent."
    yield Found("fig14", "Figure 14: the MLP of the last layer", text, rows, Table(head, cells), {"fig14": figure}, facts)
