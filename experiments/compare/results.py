"""The results of a comparison's finished runs, and the learning rate that each optimizer is given by validation."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException

from experiments.compare.plan import Plan, Run, Setting
from experiments.compare.spikes import find_spikes
from recipes.recipe import Headline


@dataclass(frozen=True)
class Finished:
    """What a finished run left behind.

    Args:
        run: The run.
        headline: What it is judged by.
        points: Metrics of its weights by share of the training steps (``"0.25"`` ... ``"1"``).
        state_bytes: Bytes of its optimizer's state.
        steps_per_second: Training steps a second.
        parameters: How many numbers are trained; none where an earlier version made the result.
        curve: Metrics at the end of each validation.
        losses: The training loss of every step; none where they are not known.
        spikes: How many loss spikes these have; none where they are not known.
        highest: The highest of them, the first steps' too, in which no spike is counted; inf where one was not finite.
        commit: Of this repository, when it was trained.
        machine: Where, in words.
        versions: Of Python and the packages.
    """

    run: Run
    headline: Headline
    points: dict[str, dict[str, float]]
    state_bytes: int
    steps_per_second: float | None
    parameters: int | None = None
    curve: list[dict[str, float]] = field(default_factory=list)
    losses: tuple[float, ...] = ()
    spikes: int | None = None
    highest: float | None = None
    commit: str = ""
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def metric(self, split: str, point: str = "1", name: str | None = None) -> float | None:
        """Return a metric of a split.

        Args:
            split: ``val`` or ``test``.
            point: Share of the training steps.
            name: The metric; the headline if none.
        """
        return self.points.get(point, {}).get(f"{split}/{name or self.headline.metric}")

    def row(self) -> dict[str, Any]:
        """Return what of it is kept beside a table: no curves."""
        row: dict[str, Any] = {"optimizer": self.run.optimizer, "lr": self.run.setting.lr}
        row |= {"betas": self.run.setting.betas} if self.run.setting.betas else {}
        row |= {"seed": self.run.seed, "val": self.metric("val")}
        row |= {f"test_{point}": self.metric("test", point) for point in self.points}
        row |= {name: self.metric("test", name=name) for name in self.headline.beside}
        row |= {"state_bytes": self.state_bytes, "parameters": self.parameters, "steps_per_second": self.steps_per_second}
        return row | ({} if self.spikes is None else {"spikes": self.spikes, "highest_loss": self.highest})


def from_row(row: Mapping[str, Any], headline: Headline) -> Finished:
    """Return a finished run as far as `Finished.row` kept it.

    Args:
        row: What it gave.
        headline: What the run is judged by.
    """
    betas = tuple(row["betas"]) if row.get("betas") else None
    test = {key.removeprefix("test_"): value for key, value in row.items() if key.startswith("test_")}
    points = {point: {f"test/{headline.metric}": value} for point, value in test.items() if value is not None}
    if row.get("val") is not None:
        points.setdefault("1", {})[f"val/{headline.metric}"] = row["val"]
    points.setdefault("1", {}).update({f"test/{name}": row[name] for name in headline.beside if row.get(name) is not None})
    run = Run(row["optimizer"], row["seed"], Setting(row.get("lr"), cast(Any, betas)))
    known = {key: row.get(key) for key in ("state_bytes", "steps_per_second", "parameters", "spikes")}
    return Finished(run, headline, points, highest=row.get("highest_loss"), **known)  # pyright: ignore[reportArgumentType]


def check_folder(plan: Plan) -> None:
    """Look through all that a comparison's folder holds, before anything is trained that could not be compared with it.

    Args:
        plan: The comparison.

    Raises:
        MisconfigurationException: A result was made with another configuration.
    """
    _ = plan.recipe  # a mistake in it is found here, and processes that train need not parse it again
    for file in sorted(plan.results_folder.glob("*.json")):
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if stored["recipe"] != plan.fingerprint(stored["optimizer"]):
            raise MisconfigurationException(
                f"{file} was made with another configuration than {plan.config} and the overrides given, or with other contents of the "
                f"files that they name, so it cannot be compared. Give another --out, or remove {plan.out} to start again."
            )


def load_result(plan: Plan, run: Run) -> Finished | None:
    """Return the result of a run, or none if it has not finished.

    Args:
        plan: The comparison.
        run: The run.
    """
    file = plan.result_file(run)
    if not file.is_file():
        return None
    return read_run(json.loads(file.read_text(encoding="utf-8")), run)


def read_run(stored: Mapping[str, Any], run: Run) -> Finished:
    """Return the result that the file of a run holds.

    Args:
        stored: What is in the file.
        run: The run.
    """
    losses = tuple(stored.get("losses", ()))
    return Finished(
        run=run,
        headline=Headline(**stored["headline"]),
        points=stored["points"],
        state_bytes=stored["state_bytes"],
        steps_per_second=stored["steps_per_second"],
        parameters=stored.get("parameters"),
        curve=stored["curve"],
        losses=losses,
        spikes=len(find_spikes(losses)) if losses else None,
        highest=max(loss if math.isfinite(loss) else math.inf for loss in losses) if losses else None,
        commit=stored.get("commit", ""),
        machine=stored.get("machine", ""),
        versions=stored.get("versions", {}),
    )


def select_by_validation(results: Sequence[Finished]) -> Run:
    """Return a run of one optimizer at the setting with the best mean over seeds on the validation set.

    Args:
        results: Its results.
    """
    by_setting: dict[Setting, list[Finished]] = {}
    for result in results:
        by_setting.setdefault(result.run.setting, []).append(result)

    def score(found: Sequence[Finished]) -> float:
        values = [value for result in found if (value := result.metric("val")) is not None]
        if len(values) < len(found):
            raise MisconfigurationException(
                f"{found[0].run.name} logged no val/{found[0].headline.metric}, by which a learning rate is selected."
            )
        mean = fmean(values)
        if math.isnan(mean):  # a run that diverged is the worst, where a comparison with nan would say anything
            return -math.inf
        return mean if found[0].headline.mode == "max" else -mean

    groups = list(by_setting.values())
    return (groups[0] if len(groups) == 1 else max(groups, key=score))[0].run


def select_each(results: Sequence[Finished], optimizers: Sequence[str]) -> list[Run]:
    """Return a run of every optimizer at the setting that validation gives it.

    Args:
        results: The results to choose by.
        optimizers: The order.
    """
    return [select_by_validation([result for result in results if result.run.optimizer == name]) for name in optimizers]


def results_at(results: Sequence[Finished], chosen: Sequence[Run]) -> dict[str, list[Finished]]:
    """Return the results of every optimizer at the setting chosen for it.

    Args:
        results: All results.
        chosen: A run of each optimizer at its setting.
    """
    return {
        run.optimizer: [result for result in results if (result.run.optimizer, result.run.setting) == (run.optimizer, run.setting)]
        for run in chosen
    }
