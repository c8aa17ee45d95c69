"""The table of a comparison, made of the rows that are kept of its runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from experiments.compare.plan import POINTS, Setting
from experiments.compare.results import Finished, from_row, results_at, select_each
from experiments.result import Result
from experiments.statistics import Interval, deviation, mean_interval, mean_text
from experiments.tables import Table
from lightning_adam_mini.table import count
from recipes.recipe import Headline


@dataclass(frozen=True)
class Row:
    """One optimizer.

    Args:
        optimizer: Its name.
        setting: The setting selected on validation.
        seeds: Number of runs.
        points: Test metric by share of the steps, where it is known: mean and standard deviation over seeds.
        difference: To the first optimizer at the end, paired by seed, with its 95 % interval; none for the first itself.
        state_bytes: Bytes of the optimizer's state.
        bytes_each: The same for each trained parameter; nan where their number is not known.
        steps_per_second: Mean speed.
        spikes: Loss spikes of all runs together; none where the losses are not known.
        highest: Highest training loss of all runs, the first steps' too, in which no spike is counted; inf where one was not finite.
        beside: What else is measured on the test set at the end, by name: mean and standard deviation over seeds.
    """

    optimizer: str
    setting: Setting
    seeds: int
    points: Mapping[float, tuple[float, float]]
    difference: Interval | None
    state_bytes: int
    bytes_each: float
    steps_per_second: float
    spikes: int | None
    highest: float | None
    beside: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def build_rows(chosen: Mapping[str, Sequence[Finished]]) -> list[Row]:
    """Summarise the results, optimizer by optimizer, the best first.

    Args:
        chosen: The results of each optimizer at its setting; the others are compared with the first.
    """
    first = next(iter(chosen))
    baseline = {result.run.seed: metric_at(result) for result in chosen[first]}
    rows: list[Row] = []
    for name, runs in chosen.items():
        columns = {point: [metric_at(result, f"{point:g}") for result in runs] for point in POINTS}
        measured = [point for point in POINTS if point == POINTS[-1] or any(f"{point:g}" in result.points for result in runs)]
        speeds = [result.steps_per_second for result in runs if result.steps_per_second is not None]
        pairs = [metric_at(result) - baseline[result.run.seed] for result in runs if result.run.seed in baseline]
        spikes = [result.spikes for result in runs if result.spikes is not None]
        highest = [result.highest for result in runs if result.highest is not None]
        beside = {name: [metric_at(result, name=name) for result in runs] for name in runs[0].headline.beside}
        rows.append(
            Row(
                optimizer=name,
                setting=runs[0].run.setting,
                seeds=len(runs),
                points={point: (fmean(columns[point]), deviation(columns[point])) for point in measured},
                difference=None if name == first or not pairs else mean_interval(pairs),
                state_bytes=max(result.state_bytes for result in runs),
                bytes_each=max(result.state_bytes / (result.parameters or math.nan) for result in runs),
                steps_per_second=fmean(speeds) if speeds else math.nan,
                spikes=sum(spikes) if len(spikes) == len(runs) else None,
                highest=max(highest) if len(highest) == len(runs) else None,
                beside={name: (fmean(values), deviation(values)) for name, values in beside.items()},
            )
        )
    sign = -1.0 if chosen[first][0].headline.mode == "max" else 1.0
    return sorted(rows, key=lambda row: (math.isnan(row.points[POINTS[-1]][0]), sign * row.points[POINTS[-1]][0]))


def metric_at(result: Finished, point: str = "1", name: str | None = None) -> float:
    """Return a metric of a run on the test set, nan where it was not measured.

    Args:
        result: The run's result.
        point: Share of the training steps.
        name: The metric; the headline if none.
    """
    value = result.metric("test", point, name)
    return math.nan if value is None else value


def build_table(rows: Sequence[Row], baseline: str, title: str, settings: Sequence[Setting] = (), tune_seeds: int | None = None) -> Table:
    """Return the table.

    Args:
        rows: Its rows.
        baseline: Name of the optimizer that the others are compared with.
        title: How a person calls the metric.
        settings: What every optimizer was given, if there was a choice.
        tune_seeds: By how many seeds it was made, if not by all.
    """
    theirs = next(row for row in rows if row.optimizer == baseline)
    choice = ""
    if len(settings) > 1:
        by = "" if tune_seeds is None else f" by the first {tune_seeds} of them" if tune_seeds > 1 else " by the first of them"
        choice = f" Chosen on validation{by} from: {'; '.join(setting.text() for setting in settings)}"
        choice += " (* at the edge of these)." if any(at_edge(row.setting, settings) for row in rows) else "."
    shares = {point: f"{point:.0%} of steps" for point in POINTS if any(point in row.points for row in rows)}
    head = ["optimizer", "lr", *shares.values(), f"difference to {baseline} [95 %]", *theirs.beside]
    head += ["state", "bytes/parameter", "steps/s"]
    text = (
        f"Test {title}, mean ± standard deviation over {count(theirs.seeds, 'seed')}, the best "
        f"first; the difference is paired by seed, at the end of training.{choice}"
    )
    lines = []
    for row in rows:
        share = "" if row is theirs else f" ({row.state_bytes / theirs.state_bytes:.1%})"
        seeds = "" if row.seeds == theirs.seeds else f" ({count(row.seeds, 'seed')})"
        lines.append(
            [
                row.optimizer + seeds,
                row.setting.text() + ("*" if at_edge(row.setting, settings) else ""),
                *(mean_text(*row.points[point]) if point in row.points else "" for point in shares),
                "-" if row.difference is None else row.difference.text("+.4f"),
                *(mean_text(*row.beside[name]) for name in theirs.beside),
                f"{row.state_bytes / 1e6:.2f} MB{share}",
                "-" if math.isnan(row.bytes_each) else f"{row.bytes_each:.2f}",
                "-" if math.isnan(row.steps_per_second) else f"{row.steps_per_second:.2f}",
            ]
        )
        lines[-1] += ["-" if row.spikes is None else str(row.spikes)]
        lines[-1] += ["-" if row.highest is None else mean_text(row.highest, math.nan, ".3g")]
    return Table([*head, "spikes", "highest loss"], lines, text=text)


def settings_table(finished: Sequence[Finished], settings: Sequence[Setting], title: str) -> Table:
    """Return the test metric of every optimizer at every setting.

    Args:
        finished: All runs.
        settings: The columns.
        title: How a person calls the metric.
    """
    cells: dict[str, dict[Setting, list[float]]] = {}
    for one in finished:
        cells.setdefault(one.run.optimizer, {}).setdefault(one.run.setting, []).append(metric_at(one))
    shown = {name: {setting: mean_text(fmean(v), deviation(v)) + f" ({len(v)})" for setting, v in by.items()} for name, by in cells.items()}
    lines = [[name, *(by.get(setting, "") for setting in settings)] for name, by in shown.items()]
    text = f"Test {title} at the end of training at every setting, mean ± standard deviation (seeds):"
    return Table(["optimizer", *(setting.text() for setting in settings)], lines, text=text)


def rows_of(result: Result) -> list[Row]:
    """Return the rows of a comparison's table.

    Args:
        result: What is kept of the comparison.
    """
    return build_rows(results_at(_finished(result), select_each(_tuned(result), result.facts["optimizers"])))


def tables_of(result: Result) -> list[Table]:
    """Return the tables of a comparison: each optimizer at the setting chosen for it, and at every setting if there is a choice.

    Args:
        result: What is kept of the comparison.
    """
    title = result.facts["headline"]["title"]
    settings = [Setting(lr, None if betas is None else tuple(betas)) for lr, betas in result.facts["settings"]]
    rows, baseline = rows_of(result), result.facts["optimizers"][0]
    tables = [build_table(rows, baseline, title, settings, result.facts.get("tune_seeds"))]
    return [*tables, settings_table(_finished(result), settings, title)] if len(settings) > 1 else tables


def _finished(result: Result) -> list[Finished]:
    headline = Headline(**result.facts["headline"])
    return [from_row(row, headline) for row in result.rows]


def _tuned(result: Result) -> list[Finished]:
    by = result.seeds[: result.facts.get("tune_seeds")]
    return [one for one in _finished(result) if one.run.seed in by]


def at_edge(setting: Setting, settings: Sequence[Setting]) -> bool:
    """Return whether a learning rate is the lowest or highest of those there were to choose from, so that a better one may lie beyond.

    Args:
        setting: What was chosen.
        settings: What there was.

    Example:
        >>> [at_edge(Setting(lr), [Setting(1e-3), Setting(2e-3), Setting(4e-3)]) for lr in (1e-3, 2e-3)]
        [True, False]
    """
    rates = {one.lr for one in settings if one.lr is not None}
    return len(rates) > 1 and setting.lr in (min(rates), max(rates))


def csv_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the table as rows for a CSV file; what does not exist is empty.

    Args:
        rows: Its rows.
    """

    def text(number: float, form: str = ".6f") -> str:
        return "" if math.isnan(number) else f"{number:{form}}"

    return [
        {
            "optimizer": row.optimizer,
            "lr": "" if row.setting.lr is None else row.setting.lr,
            "betas": row.setting.betas_text(),
            "seeds": row.seeds,
            **{
                f"test_{kind}_{point:g}": text(v)
                for point, both in row.points.items()
                for kind, v in zip(("mean", "std"), both, strict=True)
            },
            **dict(zip(("difference", "low95", "high95"), map(text, row.difference or (math.nan,) * 3), strict=True)),
            **{f"test_{kind}_{name}": text(v) for name, both in row.beside.items() for kind, v in zip(("mean", "std"), both, strict=True)},
            "state_bytes": row.state_bytes,
            "bytes_per_parameter": text(row.bytes_each, ".4f"),
            "steps_per_second": text(row.steps_per_second, ".4f"),
            "spikes": "" if row.spikes is None else row.spikes,
            "highest_loss": "" if row.highest is None else row.highest,
        }
        for row in rows
    ]
