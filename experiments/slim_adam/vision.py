"""Figures 5, 6 and 19 to 23: ratios of a ResNet18 and a vision transformer over learning rates, along the run, over depth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.slim_adam.figures import draw_ratios, mean_ratios
from experiments.slim_adam.models import resnet, vit
from experiments.slim_adam.room import Asked, Run, Task
from experiments.tables import Table
from lightning_adam_mini.analysis import average_snr
from lightning_adam_mini.callbacks.snr_figures import draw_depth, draw_trajectories
from lightning_adam_mini.table import count

LRS, STEPS, SEEDS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), 150, 1
MODELS: dict[str, Callable[[int, Path | None], tuple[str, ...]]] = {"resnet18": resnet, "vit": vit}


def make(asked: Asked) -> None:
    """Draw the figures.

    Args:
        asked: Learning rates, seeds, steps; a root of CIFAR or of image files in place of digits.
    """
    recipes = {name: recipe(asked.steps, asked.root) for name, recipe in MODELS.items()}
    tasks = {
        (name, lr, seed): Task(name, args, lr, seed, every=asked.every)
        for name, args in recipes.items()
        for seed in asked.seeds
        for lr in asked.lrs
    }
    runs = asked.train(tasks)
    figures: dict[str, Any] = {}
    for name in recipes:
        of_model = {lr: [runs[name, lr, seed] for seed in asked.seeds] for lr in asked.lrs}
        figures[f"vision_{name}"] = draw_ratios({"": {lr: mean_ratios(of_model[lr]) for lr in asked.lrs}}, "")
        middle = of_model[asked.lrs[len(asked.lrs) // 2]][0]
        figures[f"vision_{name}_along"] = draw_trajectories(middle.history, middle.report)
        figures[f"vision_{name}_depth"] = draw_depth(middle.history, middle.report)
    rows = [
        {"model": name, "lr": lr, "seed": seed, "layer_type": kind, "over": over, "ratio": average_snr(each.values())}
        for (name, lr, seed), run in runs.items()
        for kind, by in run.ratios.items()
        for over, each in by.items()
    ]
    text = (
        f"A ResNet18, an eighth as wide, and a vision transformer of 3 layers and width 96, {asked.steps} steps of AdamW on"
        f" {'digits' if asked.root is None else asked.root.name}."
    )
    asked.publish("vision", "Ratios of vision models", text, rows, [kept_table(runs, asked), ratios_table(runs, asked)], figures)


def kept_table(runs: dict[tuple[str, float, int], Run], asked: Asked) -> Table:
    """Return what AdamW reaches at each learning rate, and what share of second moments the rules of its own measurements keep.

    Args:
        runs: The runs by model, learning rate and seed.
        asked: What was asked for.
    """
    lines = []
    for name in MODELS:
        for lr in asked.lrs:
            here = [runs[name, lr, seed] for seed in asked.seeds]
            shares = [fmean(run.kept(run.rules(factored=factored)) for run in here) for factored in (False, True)]
            lines.append([name, f"{lr:g}", f"{fmean(run.test for run in here):.4f}", *(f"{share:.2%}" for share in shares)])
    head = ["model", "lr", "AdamW's test accuracy", "second moments kept", "kept by the cheapest, rows x columns among them"]
    return Table(head, lines, text=f"Means over {count(len(asked.seeds), 'seed')}; rules by layer type, cut-off 1, from the same run.")


def ratios_table(runs: dict[tuple[str, float, int], Run], asked: Asked) -> Table:
    """Return the averaged ratio of each layer type, by what is averaged, at each learning rate.

    Args:
        runs: The runs by model, learning rate and seed.
        asked: What was asked for.
    """
    lines = []
    for name in MODELS:
        means = {lr: mean_ratios([runs[name, lr, seed] for seed in asked.seeds]) for lr in asked.lrs}
        for kind, by in means[asked.lrs[0]].items():
            for over in by:
                ratios = [average_snr(means[lr][kind][over].values()) for lr in asked.lrs]
                lines.append([name, kind, over, *(f"{ratio:.2f}" for ratio in ratios)])
    return Table(["model", "layer type", "averaged over", *(f"lr {lr:g}" for lr in asked.lrs)], lines)
