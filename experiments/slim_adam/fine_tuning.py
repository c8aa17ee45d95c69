"""Figures 18, 27 and 28: ratios of a fine-tuned GPT beside those of its pre-training, what rules keep, and the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from experiments.figures import COLOURS, new_figure
from experiments.slim_adam.figures import mean_ratios, plot_over_rates
from experiments.slim_adam.models import arguments, gpt, length, text_data
from experiments.slim_adam.room import Asked, Task
from experiments.slim_adam.sweep import ADAMW, Sweep, sweep
from experiments.tables import Table
from lightning_adam_mini.analysis import average_snr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LRS, STEPS, SEEDS = (1e-3, 3e-3, 1e-2), 60, 3
PRETRAINED_AT, PRETRAINING = 3e-3, 10
"""Learning rate of the pre-training, and how many times as long it is."""
KINDS = {"all weights": 0, "LoRA": 4}
"""What is trained, and the rank of adapters."""
Ratios = Mapping[str, Mapping[str, float]]
"""By layer type and what is averaged."""


def make(asked: Asked) -> None:
    """Draw the figure.

    Args:
        asked: Learning rates, seeds, steps; a root of text files in place of Python's language reference.
    """
    layers, width = (1, 32) if asked.small else (2, 64)
    steps = asked.steps * (1 if asked.small else PRETRAINING)
    before = Task("pretraining", gpt(steps, layers, width), PRETRAINED_AT, every=max(1, steps // 20), keep=True)
    pretraining = asked.train({0: before})[0]
    checkpoint = f"{asked.out}/runs/{before.name}.ckpt"
    found = {kind: sweep(asked, kind.replace(" ", "_").lower(), fine_tuned(asked, checkpoint, rank)) for kind, rank in KINDS.items()}
    ratios: dict[str, Ratios] = {"pre-training": averaged([pretraining.ratios])}
    ratios |= {kind: averaged([mean_ratios(one.runs[ADAMW][one.best])]) for kind, one in found.items()}
    shares = {
        f"{kind}, {name}": {lr: one.kept(lr, factored=factored) for lr in asked.lrs}
        for kind, one in found.items()
        for name, factored in (("paper's rules", False), ("the cheapest", True))
    }
    rows: list[dict[str, object]] = [{"trained": kind, **row} for kind, one in found.items() for row in one.rows()]
    rows += [{"trained": kind, "layer_type": layer, **by} for kind, each in ratios.items() for layer, by in each.items()]
    text = (
        f"A GPT of {layers} layers and width {width}, pre-trained on Python's source for {steps} steps at lr {PRETRAINED_AT:g}, is"
        f" fine-tuned on {'the language reference' if asked.root is None else asked.root.name} for {asked.steps} steps, all"
        f" weights or LoRA of rank {KINDS['LoRA']}. AdamW is best on validation at lr"
        f" {' and '.join(f'{one.best:g}' for one in found.values())}."
    )
    kept = Table(
        ["trained, rules", *(f"lr {lr:g}" for lr in asked.lrs)],
        [[name, *(f"{share:.2%}" for share in rates.values())] for name, rates in shares.items()],
        "Share of second moments kept",
        "Rules by layer type, cut-off 1, from AdamW's own run at each learning rate.",
    )
    tables = [ratios_table(ratios), kept, *(one.table(f"Loss, {kind}") for kind, one in found.items())]
    asked.publish("fine_tuning", "Fine-tuning", text, rows, tables, {"fine_tuning": draw(ratios, shares, found)})


def fine_tuned(asked: Asked, checkpoint: str, rank: int) -> tuple[str, ...]:
    """Return the recipe of a fine-tuning: betas and weight decay are the paper's.

    Args:
        asked: What was asked for.
        checkpoint: The pre-trained model's file.
        rank: Rank of adapters; 0 to train all weights.
    """
    model = {"checkpoint": checkpoint, "lora_rank": rank, "betas": [0.9, 0.999], "weight_decay": 0.1, "warmup": 0.1, "cosine_end": 0.1}
    named = {"model": "FineTunedModel", **{f"model.{name}": value for name, value in model.items()}}
    return arguments({**length(asked.steps), "trainer.gradient_clip_val": 1.0, **named, **text_data(asked.root, "topics")})


def averaged(runs: list[dict[str, dict[str, dict[str, float]]]]) -> dict[str, dict[str, float]]:
    """Return ratios averaged over depth.

    Args:
        runs: Ratios by layer type, by what is averaged and by parameter.
    """
    return {layer: {over: average_snr(each.values()) for over, each in by.items()} for run in runs for layer, by in run.items()}


def ratios_table(ratios: Mapping[str, Ratios]) -> Table:
    """Return the table of averaged ratios.

    Args:
        ratios: By what is trained.
    """
    layers = list(dict.fromkeys(layer for each in ratios.values() for layer in each))
    lines = [
        [layer, over, *(f"{each[layer][over]:.2f}" if over in each.get(layer, {}) else "" for each in ratios.values())]
        for layer in layers
        for over in ("fan_in", "fan_out", "crossed")
    ]
    return Table(
        ["layer type", "averaged over", *ratios], lines, "Averaged ratios", "At the learning rate that is AdamW's best on validation."
    )


def draw(ratios: Mapping[str, Ratios], shares: Mapping[str, Mapping[float, float]], found: Mapping[str, Sweep]) -> Figure:
    """Draw the ratios of the mean over fan_in, the shares that are kept, and the losses.

    Args:
        ratios: By what is trained.
        shares: By what is trained and what kind of rules, and by learning rate.
        found: The losses, by what is trained.
    """
    figure, axes = new_figure(2, 2, width=4.8, height=3.4)
    layers = list(dict.fromkeys(layer for each in ratios.values() for layer in each))
    for i, ((kind, each), colour) in enumerate(zip(ratios.items(), COLOURS, strict=False)):
        best = [max(each.get(layer, {}).get("fan_in", 0), each.get(layer, {}).get("fan_out", 0)) for layer in layers]
        axes[0].bar([x + 0.27 * (i - 1) for x in range(len(layers))], best, 0.27, label=kind, color=colour)
    axes[0].set_xticks(range(len(layers)), [layer.replace("_", "\n") for layer in layers], fontsize=7)
    axes[0].axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes[0].set_ylabel("higher of fan_in's and fan_out's ratio")
    plot_over_rates(
        axes[1], {name: {lr: [100 * share] for lr, share in rates.items()} for name, rates in shares.items()}, "second moments kept, %"
    )
    for panel, (kind, one) in zip(axes[2:], found.items(), strict=True):
        plot_over_rates(panel, one.curves, "test loss")
        panel.set_title(kind)
    for panel in axes:
        panel.legend(fontsize=7)
    return figure
