"""Figures 10 and 26: what share of second moments rules keep over learning rates and cut-offs, and the loss of sets of rules below it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.figures import add_legend, new_figure
from experiments.slim_adam.figures import plot_over_rates
from experiments.slim_adam.models import gpt
from experiments.slim_adam.room import Asked
from experiments.slim_adam.sweep import Sweep, sweep
from experiments.tables import Table
from lightning_adam_mini.table import count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LRS, STEPS, SEEDS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), 150, 3
CUTOFFS, STRICTER = (0.5, 1.0, 2.0, 4.0), 4.0
"""Cut-offs, and one whose rules are trained with, beside 1."""
KINDS = {"the paper's rules": False, "the cheapest, rows x columns among them": True}


def make(asked: Asked) -> None:
    """Draw the figure.

    Args:
        asked: Learning rates, seeds, steps; a root of text files in place of Python's source.
    """
    layers, width = (1, 32) if asked.small else (2, 64)
    found = sweep(asked, "gpt", gpt(asked.steps, layers, width, asked.root), STRICTER)
    shares = {
        kind: {cutoff: {lr: found.kept(lr, cutoff, factored) for lr in asked.lrs} for cutoff in CUTOFFS} for kind, factored in KINDS.items()
    }
    rows = [
        {"rules": kind, "cutoff": cutoff, "lr": lr, "kept": kept}
        for kind, cutoffs in shares.items()
        for cutoff, rates in cutoffs.items()
        for lr, kept in rates.items()
    ]
    lines = [
        [kind, f"{cutoff:g}", *(f"{kept:.2%}" for kept in rates.values())]
        for kind, cutoffs in shares.items()
        for cutoff, rates in cutoffs.items()
    ]
    text = f"Of rules by layer type from AdamW's own run at each learning rate, averaged over {count(len(asked.seeds), 'seed')}."
    kept = Table(["rules", "cut-off", *(f"lr {lr:g}" for lr in asked.lrs)], lines, "Share of second moments kept", text)
    about = f"A GPT of {layers} layers and width {width}, {asked.steps} steps; AdamW is best at lr {found.best:g} on validation."
    tables = [kept, found.table("Loss by sets of rules")]
    asked.publish("kept", "What rules keep", about, [*found.rows(), *rows], tables, {"kept": draw(shares, found)})


def draw(shares: dict[str, dict[float, dict[float, float]]], found: Sweep) -> Figure:
    """Draw the shares that are kept, and the losses.

    Args:
        shares: By kind of rules, cut-off and learning rate.
        found: The losses.
    """
    figure, axes = new_figure(3, width=4.2, height=3.4)
    for panel, (kind, cutoffs) in zip(axes, shares.items(), strict=False):
        curves = {f"cut-off {cutoff:g}": {lr: [100 * share] for lr, share in rates.items()} for cutoff, rates in cutoffs.items()}
        plot_over_rates(panel, curves, "second moments kept, %")
        panel.set_title(kind)
        panel.set_yscale("log")
        panel.set_ylim(1, 130)
        panel.yaxis.set_major_formatter("{x:g}")
        add_legend(panel)
    plot_over_rates(axes[2], found.curves, "test loss")
    axes[2].set_title("loss over learning rates")
    axes[2].legend(fontsize=7)
    return figure
