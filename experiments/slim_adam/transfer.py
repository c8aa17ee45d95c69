"""Figure 30 and Section 5: rules averaged over depth beside rules per layer, of a smaller model, and of other data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from experiments.figures import INK, OURS, new_figure
from experiments.slim_adam.models import gpt
from experiments.slim_adam.room import Asked, Run, Task
from experiments.slim_adam.sweep import ADAMW, Sweep, best_rate, train_adamw, train_by
from experiments.tables import Table
from lightning_adam_mini.partition import SlimAdamRules

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LRS, STEPS, SEEDS = (3e-3,), 80, 3
LAYER, DEPTH, SMALLER, OTHER = "per layer", "averaged over depth", "of a smaller model", "of other data"


def make(asked: Asked) -> None:
    """Draw the figure.

    Args:
        asked: Learning rates, seeds, steps; a root of text files as the other data, in place of Python's language reference.
    """
    small, large = ((1, 32), (2, 32)) if asked.small else ((2, 32), (4, 64))
    other = "language reference" if asked.root is None else asked.root.name
    data = {"source code": (None, "source"), other: (asked.root, "topics")}
    recipes = {name: gpt(asked.steps, *large, *where) for name, where in data.items()}
    adamw = {name: train_adamw(asked, f"large-on-{part(name)}", args) for name, args in recipes.items()}
    best = {name: best_rate(runs) for name, runs in adamw.items()}
    measured = {name: tenth(asked, f"large-on-{part(name)}", recipes[name], best[name]) for name in data}
    smaller = {name: tenth(asked, f"small-on-{part(name)}", gpt(asked.steps, *small, *where), best[name]) for name, where in data.items()}
    found, rules = {}, {}
    for name, here in measured.items():
        elsewhere = next(run for one, run in measured.items() if one != name)
        rules[name] = {LAYER: here.rules(by="parameter"), DEPTH: here.rules(), SMALLER: smaller[name].rules(), OTHER: elsewhere.rules()}
        found[name] = train_by(asked, f"large-on-{part(name)}", recipes[name], adamw[name], rules[name])
    text = (
        f"A GPT of {large[0]} layers and width {large[1]}, {asked.steps} steps on each text; the smaller has {small[0]} layers and width"
        f" {small[1]}. All rules are measured at a tenth of the learning rate that is AdamW's best on validation."
    )
    rows = [{"data": name, **row} for name, one in found.items() for row in one.rows()]
    tables = [*(one.table(f"Loss on the {name}, by rules") for name, one in found.items()), agreement(rules)]
    asked.publish("transfer", "Transfer of rules", text, rows, tables, {"transfer": draw(found)})


def part(name: str) -> str:
    """Return a text's name as part of a file's.

    Args:
        name: The text.
    """
    return name.split()[0]


def tenth(asked: Asked, label: str, args: tuple[str, ...], lr: float) -> Run:
    """Return AdamW's measured run at a tenth of a learning rate.

    Args:
        asked: Steps and the like.
        label: What its file is called.
        args: The recipe.
        lr: The learning rate.
    """
    return asked.train({0: Task(label, args, lr / 10, every=asked.every)})[0]


def agreement(rules: Mapping[str, Mapping[str, SlimAdamRules]]) -> Table:
    """Return what each set averages, by layer type: 0 is fan_out, 1 is fan_in.

    Args:
        rules: The sets by data and name.
    """
    sets = {f"{name}, {kind}": one.rules for name, each in rules.items() for kind, one in each.items() if kind in (DEPTH, SMALLER)}
    layers = list(dict.fromkeys(layer for one in sets.values() for layer, rule in one.items() if rule.dims))
    lines = [[layer, *(str(one[layer]) if layer in one else "" for one in sets.values())] for layer in layers]
    return Table(["layer type", *sets], lines, "What is averaged", "[0] averages over fan_out, [1] over fan_in.")


def draw(found: Mapping[str, Sweep]) -> Figure:
    """Draw the difference of each set's loss to AdamW's, a point for each seed.

    Args:
        found: The losses, by data.
    """
    figure, axes = new_figure(len(found), width=4.8, height=2.8)
    for panel, (name, one) in zip(axes, found.items(), strict=True):
        adamw = one.runs[ADAMW][one.best]
        for y, kind in enumerate(one.rules):
            differences = [run.test - other.test for run, other in zip(one.runs[kind][one.best], adamw, strict=True)]
            panel.plot(differences, [y] * len(differences), "o", color=OURS, alpha=0.6)
            panel.plot([sum(differences) / len(differences)] * 2, [y - 0.25, y + 0.25], color=OURS)
        labels = [f"{kind}\nkeeps {adamw[0].kept(rules):.1%}" for kind, rules in one.rules.items()]
        panel.set_yticks(range(len(labels)), labels, fontsize=8)
        panel.set_ylim(len(labels) - 0.5, -0.5)
        panel.axvline(0, color=INK, linewidth=0.8)
        panel.set_title(f"on the {name}")
        panel.set_xlabel(f"test loss minus AdamW's, lr {one.best:g}")
    return figure
