"""Figure 3: random quadratics with three dense blocks."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor

from experiments.figures import new_figure
from experiments.hessian.output import Found
from experiments.hessian.quadratic import adam_scale, best_rate, condition, descend
from experiments.tables import Table

EIGENVALUES = ((1, 2, 3), (99, 100, 101), (4998, 4999, 5000))
SIZE = 30
COLOURS = {"one rate": "#6e7f8d", "Adam": "#1f2328", "a rate a block": "#d55e00"}


def dense_block(values: tuple[int, ...], size: int, generator: torch.Generator) -> Tensor:
    """Return a random dense matrix with eigenvalues drawn from some values.

    Args:
        values: What is drawn from, with replacement.
        size: Rows of the matrix.
        generator: Of the draws.
    """
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    drawn = torch.tensor(values, dtype=torch.float64)[torch.randint(len(values), (size,), generator=generator)]
    return basis @ torch.diag(drawn) @ basis.T


def run(seed: int, steps: int) -> dict[str, dict[str, Any]]:
    """Return losses and condition numbers of one draw, by where: the whole, and each block by itself.

    Args:
        seed: Of the draw.
        steps: Steps of each descent.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = [dense_block(values, SIZE, generator) for values in EIGENVALUES]
    start = torch.randn(SIZE * len(blocks), generator=generator, dtype=torch.float64)
    whole = torch.block_diag(*blocks)
    rates = torch.tensor([best_rate(block) for block in blocks], dtype=torch.float64).repeat_interleave(SIZE)
    found: dict[str, dict[str, Any]] = {}
    for where, hessian, w in [("whole", whole, start), *zip(("block 1", "block 2", "block 3"), blocks, start.split(SIZE), strict=True)]:
        scale = adam_scale(hessian, w)
        root = scale.sqrt()
        ways = {"one rate": torch.tensor(best_rate(hessian)), "Adam": scale}
        if where == "whole":
            ways["a rate a block"] = rates
        found[where] = {
            "losses": {way: descend(hessian, w, factors.double(), steps) for way, factors in ways.items()},
            "condition": {"one rate": condition(hessian), "Adam": condition(root[:, None] * hessian * root)},
        }
    return found


def make(seed: int = 0, quick: bool = False) -> Iterator[Found]:
    """Draw the figure.

    Args:
        seed: The first seed.
        quick: Whether to take few draws.
    """
    draws = [run(seed + i, steps=200) for i in range(2 if quick else 20)]  # the band: from the 10th to the 90th percentile
    figure, charts = new_figure(4, width=3.4, height=3.0)
    head = ["where", "way", "condition number", "loss after 10 steps", "after 100", "draws in which it is the best"]
    cells, rows = list[list[str]](), list[dict[str, Any]]()
    for chart, where in zip(charts, draws[0], strict=True):
        ways = list(draws[0][where]["losses"])
        wins = [min(ways, key=lambda way: draw[where]["losses"][way][100]) for draw in draws]
        for way in ways:
            curves = torch.tensor([draw[where]["losses"][way] for draw in draws]).clamp_min(1e-12)
            chart.plot(curves.median(0).values, color=COLOURS[way], label=way)
            low, high = curves.quantile(0.1, 0), curves.quantile(0.9, 0)
            chart.fill_between(range(curves.shape[1]), low, high, color=COLOURS[way], alpha=0.15, linewidth=0)
            after = [median(curves[:, step].tolist()) for step in (10, 100)]
            conditions = [draw[where]["condition"].get(way) for draw in draws]
            known = [value for value in conditions if value is not None]
            middle = median(known) if known else None
            shown = [f"{middle:.3g}" if middle else "", *(f"{value:.2g}" for value in after)]
            cells.append([where, way, *shown, f"{wins.count(way)} of {len(draws)}"])
            rows += [
                {"seed": seed + i, "where": where, "way": way, "condition": conditions[i], "after_10": curve[10], "after_100": curve[100]}
                for i, curve in enumerate(curves.tolist())
            ]
        chart.set_yscale("log")
        chart.set_ylim(1e-12, 10)
        chart.set_title("the whole" if where == "whole" else f"{where}: {', '.join(map(str, EIGENVALUES[int(where[-1]) - 1]))}", fontsize=9)
        chart.set_xlabel("step")
    charts[0].set_ylabel("loss over that at first")
    charts[0].legend(fontsize=8, frameon=False)
    text = f"Medians of {len(draws)} draws; losses over those at first. Losses below 1e-12 are shown as that."
    yield Found("fig3", "Figure 3: random quadratics of three dense blocks", text, rows, Table(head, cells), {"fig3": figure})
