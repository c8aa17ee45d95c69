"""AdamW over learning rates, measured, and beside it sets of rules from its measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from experiments.slim_adam.room import Asked, Run, Task, rules_digest
from experiments.statistics import deviation, mean_interval, mean_text
from experiments.tables import Table
from lightning_adam_mini.partition import SlimAdamRules
from lightning_adam_mini.table import count

ADAMW, TENTH, WHOLE, CROSSED = "AdamW", "rules from lr / 10", "rules from lr", "cheapest, rows x columns among, from lr"


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Args:
        best: The learning rate at which AdamW is best on validation.
        rules: The sets of rules.
        runs: By optimizer (``"AdamW"``, or the name of a set of rules) and by learning rate: a run for each seed.
    """

    best: float
    rules: dict[str, SlimAdamRules]
    runs: dict[str, dict[float, list[Run]]]

    @property
    def losses(self) -> dict[str, dict[float, list[float]]]:
        """The test metric of each seed, by optimizer and learning rate."""
        return {name: {lr: [run.test for run in here] for lr, here in rates.items()} for name, rates in self.runs.items()}

    @property
    def curves(self) -> dict[str, dict[float, list[float]]]:
        """The same for a figure, where sets of equal rules are one line."""
        same: dict[str, list[str]] = {}
        for name in self.runs:
            same.setdefault(rules_digest(self.rules[name]) if name in self.rules else "", []).append(name)
        return {"\n= ".join(names): self.losses[names[0]] for names in same.values()}

    def kept(self, lr: float, cutoff: float = 1.0, factored: bool = False) -> float:
        """Return the share of second moments that rules from AdamW's runs at a learning rate keep, averaged over seeds.

        Args:
            lr: The learning rate.
            cutoff: What a ratio has to exceed.
            factored: Whether rules may keep the means of rows and of columns.
        """
        return fmean(run.kept(run.rules(cutoff, factored=factored)) for run in self.runs[ADAMW][lr])

    def table(self, title: str) -> Table:
        """Return the table: an optimizer a row, what it keeps, its metric at each learning rate, and its difference to AdamW at the best.

        Args:
            title: What stands above it.
        """
        adamw = self.runs[ADAMW]
        here = adamw[self.best][0]
        lines = []
        for name, rates in self.losses.items():
            kept = "100 %" if name == ADAMW else f"{here.kept(self.rules[name]):.2%}"
            cells = [mean_text(fmean(rates[lr]), deviation(rates[lr]), ".3f") if lr in rates else "" for lr in adamw]
            paired = [run.test - other.test for run, other in zip(self.runs[name][self.best], adamw[self.best], strict=True)]
            lines.append([name, kept, *cells, "" if name == ADAMW else mean_interval(paired).text("+.3f")])
        head = ["optimizer", "second moments kept", *(f"lr {lr:g}" for lr in adamw), f"difference at {self.best:g} [95 %]"]
        text = f"Test {here.title}, mean ± standard deviation over {count(len(adamw[self.best]), 'seed')}; differences are paired by seed."
        return Table(head, lines, title, text)

    def rows(self) -> list[dict[str, object]]:
        """Return a row for each run."""
        return [
            {"optimizer": name, "lr": lr, "seed": seed, "val": run.val, "test": run.test}
            for name, rates in self.runs.items()
            for lr, runs in rates.items()
            for seed, run in enumerate(runs)
        ]


def sweep(asked: Asked, label: str, args: tuple[str, ...], stricter: float | None = None) -> Sweep:
    """Train with AdamW at each learning rate, and with sets of rules.

    These are the paper's from a tenth of the learning rate that is AdamW's best on validation; from the rate itself the paper's, and the
    cheapest with rows x columns among them. With a stricter cut-off than 1, the last two again, trained at the best rate alone.

    Args:
        asked: Learning rates, seeds, steps.
        label: What the files of runs are called.
        args: The recipe.
        stricter: The stricter cut-off; none for none.
    """
    adamw = train_adamw(asked, label, args)
    best = best_rate(adamw)
    whole = adamw[best][0]
    tenth = asked.train({0: Task(label, args, best / 10, every=asked.every)})[0]
    found = train_by(asked, label, args, adamw, {TENTH: tenth.rules(), WHOLE: whole.rules(), CROSSED: whole.rules(factored=True)})
    if stricter is None:
        return found
    strict = {f"{kind}, cut-off {stricter:g}": whole.rules(stricter, factored=kind == CROSSED) for kind in (WHOLE, CROSSED)}
    at_best = train_by(replace(asked, lrs=(best,)), label, args, {best: adamw[best]}, strict)
    return Sweep(best, {**found.rules, **strict}, {**found.runs, **{name: at_best.runs[name] for name in strict}})


def train_adamw(asked: Asked, label: str, args: tuple[str, ...]) -> dict[float, list[Run]]:
    """Train with AdamW and measure, at each learning rate and with each seed.

    Args:
        asked: Learning rates, seeds, steps.
        label: What the files of runs are called.
        args: The recipe.
    """
    return _by_rate(asked, Task(label, args, 0.0, every=asked.every))


def train_by(
    asked: Asked, label: str, args: tuple[str, ...], adamw: Mapping[float, Sequence[Run]], rules: Mapping[str, SlimAdamRules]
) -> Sweep:
    """Train with each set of rules, at each learning rate and with each seed.

    Args:
        asked: Learning rates, seeds, steps.
        label: What the files of runs are called.
        args: The recipe.
        adamw: AdamW's runs.
        rules: The sets, by name.
    """
    by_rules = {name: _by_rate(asked, Task(label, args, 0.0, rules=one)) for name, one in rules.items()}
    return Sweep(best_rate(adamw), dict(rules), {ADAMW: {lr: list(runs) for lr, runs in adamw.items()}, **by_rules})


def best_rate(runs: Mapping[float, Sequence[Run]]) -> float:
    """Return the learning rate that is best on validation, on average over seeds.

    Args:
        runs: By learning rate, a run for each seed.
    """
    return min(runs, key=lambda lr: fmean(run.worth for run in runs[lr]))


def _by_rate(asked: Asked, task: Task) -> dict[float, list[Run]]:
    tasks = {(lr, seed): replace(task, lr=lr, seed=seed) for seed in asked.seeds for lr in asked.lrs}
    runs = asked.train(tasks)
    return {lr: [runs[lr, seed] for seed in asked.seeds] for lr in asked.lrs}
