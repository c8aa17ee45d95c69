"""The table of a comparison, in Markdown for people and CSV for programs."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from recipes.compare.plan import POINTS
from recipes.compare.results import Result
from recipes.statistics import Interval, mean_interval


@dataclass(frozen=True)
class Row:
    """One optimizer.

    Args:
        optimizer: Its name.
        lr: The learning rate selected on validation; none for the recipe's own.
        seeds: Number of runs.
        points: Test metric by share of the steps: mean and standard deviation over seeds.
        difference: To the first optimizer at the end, paired by seed, with its 95 % interval; none for the first itself.
        state_bytes: Bytes of the optimizer's state.
        steps_per_second: Mean speed.
    """

    optimizer: str
    lr: float | None
    seeds: int
    points: tuple[tuple[float, float], ...]
    difference: Interval | None
    state_bytes: int
    steps_per_second: float


def build_rows(chosen: Mapping[str, Sequence[Result]]) -> list[Row]:
    """Summarise the results, optimizer by optimizer.

    Args:
        chosen: The results of each optimizer at its learning rate, in the order of the rows; the others are compared with the first.
    """
    first = next(iter(chosen))
    baseline = {result.run.seed: headline_at(result) for result in chosen[first]}
    rows: list[Row] = []
    for name, runs in chosen.items():
        columns = [[headline_at(result, f"{point:g}") for result in runs] for point in POINTS]
        speeds = [result.steps_per_second for result in runs if result.steps_per_second is not None]
        pairs = [headline_at(result) - baseline[result.run.seed] for result in runs if result.run.seed in baseline]
        rows.append(
            Row(
                optimizer=name,
                lr=runs[0].run.lr,
                seeds=len(runs),
                points=tuple((fmean(column), stdev(column) if len(column) > 1 else math.nan) for column in columns),
                difference=None if name == first or not pairs else mean_interval(pairs),
                state_bytes=max(result.state_bytes for result in runs),
                steps_per_second=fmean(speeds) if speeds else math.nan,
            )
        )
    return rows


def headline_at(result: Result, point: str = "1") -> float:
    """Return a run's headline metric on the test set, nan where it was not measured.

    Args:
        result: The run's result.
        point: Share of the training steps.
    """
    value = result.metric("test", point)
    return math.nan if value is None else value


def markdown(rows: Sequence[Row], title: str, lrs: Sequence[float] = ()) -> str:
    """Return the table in Markdown.

    Args:
        rows: Its rows, the first of which is the baseline.
        title: How a person calls the metric.
        lrs: The learning rates that every optimizer was given, if there was a choice.
    """
    baseline = rows[0]
    choice = f" Learning rates, chosen on validation: {', '.join(f'{lr:g}' for lr in lrs)}." if len(lrs) > 1 else ""
    shares = [f"{point:.0%} of steps" for point in POINTS]
    head = ["optimizer", "lr", *shares, f"difference to {baseline.optimizer} [95 %]", "state", "steps/s"]
    lines = [
        f"Test {title}, mean ± standard deviation over {baseline.seeds} seed{'s' if baseline.seeds != 1 else ''}; "
        f"the difference is paired by seed, at the end of training.{choice}",
        "",
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
    ]
    for row in rows:
        points = [f"{mean:.4f}" + ("" if math.isnan(spread) else f" ± {spread:.4f}") for mean, spread in row.points]
        share = "" if row is baseline else f" ({row.state_bytes / baseline.state_bytes:.1%})"
        cells = [
            row.optimizer,
            "config" if row.lr is None else f"{row.lr:g}",
            *points,
            "-" if row.difference is None else row.difference.text("+.4f"),
            f"{row.state_bytes / 1e6:.2f} MB{share}",
            "-" if math.isnan(row.steps_per_second) else f"{row.steps_per_second:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def csv_text(rows: Sequence[Row]) -> str:
    """Return the table as CSV; what does not exist is empty.

    Args:
        rows: Its rows.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    points = [f"test_{kind}_{point:g}" for point in POINTS for kind in ("mean", "std")]
    writer.writerow(["optimizer", "lr", "seeds", *points, "difference", "low95", "high95", "state_bytes", "steps_per_second"])
    for row in rows:
        difference = row.difference or (math.nan, math.nan, math.nan)
        numbers = [value for pair in row.points for value in pair] + list(difference)
        texts = ["" if math.isnan(number) else f"{number:.6f}" for number in numbers]
        speed = "" if math.isnan(row.steps_per_second) else f"{row.steps_per_second:.4f}"
        writer.writerow([row.optimizer, "" if row.lr is None else row.lr, row.seeds, *texts, row.state_bytes, speed])
    return buffer.getvalue()
