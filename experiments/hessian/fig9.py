"""Figure 9: densities of eigenvalues of each block's Hessian, of a transformer and of a CNN."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from experiments.figures import new_figure
from experiments.hessian.blocks import hessians
from experiments.hessian.models import HEADS, LAYERS, WIDTH, cnn, transformer
from experiments.hessian.output import Found
from experiments.tables import Table

BINS, FLOOR = 40, 1e-8
"""Bins of the logarithm of an eigenvalue's size over the largest in its block, from here on."""


def density(values: Tensor, largest: float) -> Tensor:
    """Return the share of eigenvalues in each bin of log10 |value| / largest.

    Args:
        values: Eigenvalues.
        largest: What they are divided by.
    """
    logs = (values.abs() / largest).clamp(FLOOR, 1).log10()
    counts = torch.histc(logs, BINS, min=math.log10(FLOOR), max=0)
    return counts / counts.sum()


def distance(a: Tensor, b: Tensor) -> float:
    """Return the Jensen-Shannon distance of two densities, from 0 (the same) to 1 (apart).

    Args:
        a: Shares that sum to 1.
        b: The same.
    """
    middle = (a + b) / 2
    terms = [torch.xlogy(x, x / middle).nan_to_num().sum() / 2 for x in (a, b)]
    return math.sqrt(max(0.0, float(sum(terms)) / math.log(2)))


def make(seed: int = 0, quick: bool = False) -> Iterator[Found]:
    """Draw the figure.

    Args:
        seed: Of the weights and the sequence.
        quick: Whether to look at a few blocks only.
    """
    layers = [0] if quick else [0, LAYERS - 1]
    parts = {"q_proj": WIDTH // HEADS, "k_proj": WIDTH // HEADS, "v_proj": None, "out_proj": None}
    net, loss = transformer(seed)
    wanted: dict[str, int | None] = {f"blocks.{layer}.attn.{part}.weight": count for layer in layers for part, count in parts.items()}
    wanted |= {f"blocks.{layer}.mlp.{part}.weight": count for layer in layers for part, count in (("up_proj", 16), ("down_proj", 4))}
    conv, conv_loss = cnn(seed)
    networks = {
        "transformer": (net, loss, wanted),
        "CNN": (conv, conv_loss, {name: None for name, _ in conv.named_parameters()}),
    }
    figure, charts = new_figure(2, width=5.2, height=3.6)
    lines, rows, facts = list[list[str]](), list[dict[str, Any]](), dict[str, Any]()
    for chart, (kind, (model, its_loss, these)) in zip(charts, networks.items(), strict=True):
        spectra = {name: torch.linalg.eigvalsh(hessian) for name, hessian, _ in hessians(model, its_loss, these)}
        largest = {name: float(values.abs().max()) for name, values in spectra.items()}
        shapes = {name: density(values, largest[name]) for name, values in spectra.items()}
        over_all = {name: density(values, max(largest.values())) for name, values in spectra.items()}
        for name, values in spectra.items():
            short = name.replace("blocks.", "").removesuffix(".weight").replace("_proj", "")
            chart.plot(torch.linspace(math.log10(FLOOR), 0, BINS), over_all[name], linewidth=1, label=short)
            small = float((values.abs() < 1e-3 * largest[name]).double().mean())
            rows.append({"network": kind, "block": name, "size": len(values), "largest": largest[name], "below_0.1_percent": small})
            lines.append([kind, name, str(len(values)), f"{largest[name]:.2e}", f"{100 * small:.0f} %"])
        pairs = list(itertools.combinations(spectra, 2))
        means = [sum(distance(d[a], d[b]) for a, b in pairs) / len(pairs) for d in (over_all, shapes)]
        spread = max(largest.values()) / min(largest.values())
        facts[kind] = {"distance": means[0], "distance_of_shapes": means[1], "largest_over_smallest": spread}
        chart.set_title(f"{kind}: mean distance of two blocks {means[0]:.2f} (each scaled to its largest: {means[1]:.2f})", fontsize=9)
        chart.set_xlabel("log10 of |eigenvalue| / largest of the network")
        chart.legend(fontsize=6, frameon=False, ncols=2)
    charts[0].set_ylabel("share of the block's eigenvalues")
    table = Table(["network", "block", "size", "largest eigenvalue", "below 0.1 % of it"], lines)
    text = " ".join(
        f"{kind}: largest eigenvalues differ by a factor of {f['largest_over_smallest']:,.0f}; mean Jensen-Shannon distance of two blocks"
        f" {f['distance']:.2f}, each scaled to its own largest {f['distance_of_shapes']:.2f}."
        for kind, f in facts.items()
    )
    yield Found("fig9", "Figure 9: densities of eigenvalues", text, rows, table, {"fig9": figure}, facts)
