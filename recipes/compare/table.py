"""The table of a comparison, in Markdown for people and CSV for programs."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from recipes.compare.plan import POINTS, Setting
from recipes.compare.results import Result
from recipes.compare.spikes import find_spikes
from recipes.statistics import Interval, deviation, mean_interval, mean_text


@dataclass(frozen=True)
class Row:
    """One optimizer.

    Args:
        optimizer: Its name.
        setting: The setting selected on validation.
        seeds: Number of runs.
        points: Test metric by share of the steps: mean and standard deviation over seeds.
        difference: To the first optimizer at the end, paired by seed, with its 95 % interval; none for the first itself.
        state_bytes: Bytes of the optimizer's state.
        bytes_each: The same for each trained parameter; nan where their number is not known.
        steps_per_second: Mean speed.
        spikes: Loss spikes of all runs together; none where the losses are not known.
        highest: Highest training loss of all runs, the first steps' too, in which no spike is counted; inf where one was not finite.
    """

    optimizer: str
    setting: Setting
    seeds: int
    points: tuple[tuple[float, float], ...]
    difference: Interval | None
    state_bytes: int
    bytes_each: float
    steps_per_second: float
    spikes: int | None
    highest: float | None


def build_rows(chosen: Mapping[str, Sequence[Result]]) -> list[Row]:
    """Summarise the results, optimizer by optimizer, the best first.

    Args:
        chosen: The results of each optimizer at its setting; the others are compared with the first.
    """
    first = next(iter(chosen))
    baseline = {result.run.seed: headline_at(result) for result in chosen[first]}
    rows: list[Row] = []
    for name, runs in chosen.items():
        columns = [[headline_at(result, f"{point:g}") for result in runs] for point in POINTS]
        speeds = [result.steps_per_second for result in runs if result.steps_per_second is not None]
        pairs = [headline_at(result) - baseline[result.run.seed] for result in runs if result.run.seed in baseline]
        known = all(result.losses for result in runs)
        losses = [loss for result in runs for loss in result.losses]
        rows.append(
            Row(
                optimizer=name,
                setting=runs[0].run.setting,
                seeds=len(runs),
                points=tuple((fmean(column), deviation(column)) for column in columns),
                difference=None if name == first or not pairs else mean_interval(pairs),
                state_bytes=max(result.state_bytes for result in runs),
                bytes_each=max(result.state_bytes / (result.parameters or math.nan) for result in runs),
                steps_per_second=fmean(speeds) if speeds else math.nan,
                spikes=sum(len(find_spikes(result.losses)) for result in runs) if known else None,
                highest=max(loss if math.isfinite(loss) else math.inf for loss in losses) if known else None,
            )
        )
    sign = -1.0 if chosen[first][0].headline.mode == "max" else 1.0
    return sorted(rows, key=lambda row: (math.isnan(row.points[-1][0]), sign * row.points[-1][0]))


def headline_at(result: Result, point: str = "1") -> float:
    """Return a run's headline metric on the test set, nan where it was not measured.

    Args:
        result: The run's result.
        point: Share of the training steps.
    """
    value = result.metric("test", point)
    return math.nan if value is None else value


def markdown(rows: Sequence[Row], baseline: str, title: str, settings: Sequence[Setting] = (), tune_seeds: int | None = None) -> str:
    """Return the table in Markdown.

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
    shares = [f"{point:.0%} of steps" for point in POINTS]
    head = ["optimizer", "lr", *shares, f"difference to {baseline} [95 %]", "state", "bytes/parameter", "steps/s", "spikes", "highest loss"]
    lines = [
        f"Test {title}, mean ± standard deviation over {theirs.seeds} seed{'s' if theirs.seeds != 1 else ''}, the best "
        f"first; the difference is paired by seed, at the end of training.{choice}",
        "",
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
    ]
    for row in rows:
        points = [mean_text(mean, spread) for mean, spread in row.points]
        share = "" if row is theirs else f" ({row.state_bytes / theirs.state_bytes:.1%})"
        cells = [
            row.optimizer,
            row.setting.text() + ("*" if at_edge(row.setting, settings) else ""),
            *points,
            "-" if row.difference is None else row.difference.text("+.4f"),
            f"{row.state_bytes / 1e6:.2f} MB{share}",
            "-" if math.isnan(row.bytes_each) else f"{row.bytes_each:.2f}",
            "-" if math.isnan(row.steps_per_second) else f"{row.steps_per_second:.2f}",
            "-" if row.spikes is None else str(row.spikes),
            "-" if row.highest is None else mean_text(row.highest, math.nan, ".3g"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


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


def csv_text(rows: Sequence[Row]) -> str:
    """Return the table as CSV; what does not exist is empty.

    Args:
        rows: Its rows.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    points = [f"test_{kind}_{point:g}" for point in POINTS for kind in ("mean", "std")]
    rest = ["difference", "low95", "high95", "state_bytes", "bytes_per_parameter", "steps_per_second", "spikes", "highest_loss"]
    writer.writerow(["optimizer", "lr", "betas", "seeds", *points, *rest])
    for row in rows:
        difference = row.difference or (math.nan, math.nan, math.nan)
        numbers = [value for pair in row.points for value in pair] + list(difference)
        texts = ["" if math.isnan(number) else f"{number:.6f}" for number in numbers]
        each = "" if math.isnan(row.bytes_each) else f"{row.bytes_each:.4f}"
        speed = "" if math.isnan(row.steps_per_second) else f"{row.steps_per_second:.4f}"
        losses = ["" if value is None else value for value in (row.spikes, row.highest)]
        chosen = ["" if row.setting.lr is None else row.setting.lr, row.setting.betas_text()]
        writer.writerow([row.optimizer, *chosen, row.seeds, *texts, row.state_bytes, each, speed, *losses])
    return buffer.getvalue()
