"""Tables of SlimAdam's experiments, from the results that a comparison leaves behind."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.statistics import deviation, mean_interval, mean_text
from experiments.tables import Table


def load_runs(folder: Path) -> list[dict[str, Any]]:
    """Return the results of a comparison's runs: optimizer, lr, seed, headline, points.

    Args:
        folder: What the comparison had for ``--out``.
    """
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / "runs").glob("*.json"))]


def final(run: Mapping[str, Any], split: str = "test") -> float:
    """Return a run's headline metric at the end of training; nan where it diverged.

    Args:
        run: Its result.
        split: ``val`` or ``test``.
    """
    value = run["points"].get("1", {}).get(f"{split}/{run['headline']['metric']}")
    return math.nan if value is None else float(value)


def by_setting(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, float | None], dict[int, float]]:
    """Return the final metric by optimizer and learning rate, and by seed.

    Args:
        runs: The results.
    """
    found: dict[tuple[str, float | None], dict[int, float]] = {}
    for run in runs:
        found.setdefault((run["optimizer"], run["lr"]), {})[run["seed"]] = final(run)
    return found


def rules_table(runs: Sequence[Mapping[str, Any]], derived: Mapping[str, tuple[float, float]]) -> Table:
    """Return the table of SlimAdam with rules from several learning rates beside AdamW.

    Args:
        runs: The results.
        derived: By name of the optimizer: the learning rate that its rules are from, and the share of second moments that they keep.
    """
    adamw = next(values for (name, _), values in by_setting(runs).items() if name == "adamw")
    title = runs[0]["headline"]["title"]
    head = ["optimizer", "rules from lr", "second moments kept", f"test {title}", "difference to AdamW [95 %]", "difference / AdamW's sd"]
    lines = [["AdamW", "", "100 %", _spread(adamw), "", ""]]
    sd = deviation(list(adamw.values()))
    for (name, _), values in by_setting(runs).items():
        if name in derived:
            lr, kept = derived[name]
            difference = mean_interval([values[seed] - adamw[seed] for seed in values])
            ratio = f"{difference.centre / sd:+.2f}" if sd > 0 else "-"
            lines.append(["SlimAdam", f"{lr:g}", f"{kept:.2%}", _spread(values), difference.text("+.4f"), ratio])
    text = f"Test {title} at the end of training, mean ± standard deviation over {len(adamw)} seeds; the difference is paired by seed."
    return Table(head, lines, text=text)


def sweep_table(runs: Sequence[Mapping[str, Any]], optimizers: Sequence[str]) -> Table:
    """Return the table of a sweep: an optimizer a row, a learning rate a column.

    Args:
        runs: The results.
        optimizers: The order of the rows.
    """
    settings = by_setting(runs)
    lrs = sorted({lr for _, lr in settings if lr is not None})
    title, seeds = runs[0]["headline"]["title"], max(map(len, settings.values()))
    lines = [[name, *(_spread(settings[name, lr]) if (name, lr) in settings else "" for lr in lrs)] for name in optimizers]
    plural = "s" * (seeds > 1)
    text = f"Test {title} at the end of training, mean{' ± standard deviation' * bool(plural)} over {seeds} seed{plural}."
    return Table(["optimizer", *(f"lr {lr:g}" for lr in lrs)], lines, text=text)


def _spread(values: Mapping[int, float]) -> str:
    numbers = list(values.values())
    return mean_text(fmean(numbers), deviation(numbers))
