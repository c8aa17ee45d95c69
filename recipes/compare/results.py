"""The results of a comparison's finished runs, and the learning rate that each optimizer is given by validation."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from recipes.compare.plan import Plan, Run, Setting
from recipes.recipe import Headline


@dataclass(frozen=True)
class Result:
    """What a finished run left behind.

    Args:
        run: The run.
        headline: What it is judged by.
        points: Metrics of its weights by share of the training steps (``"0.25"`` ... ``"1"``).
        curve: Metrics at the end of each validation.
        state_bytes: Bytes of its optimizer's state.
        steps_per_second: Training steps a second.
        losses: The training loss of every step; none where an earlier version made the result.
        parameters: How many numbers are trained; none where an earlier version made the result.
    """

    run: Run
    headline: Headline
    points: dict[str, dict[str, float]]
    curve: list[dict[str, float]]
    state_bytes: int
    steps_per_second: float | None
    losses: tuple[float, ...] = ()
    parameters: int | None = None

    def metric(self, split: str, point: str = "1") -> float | None:
        """Return the headline metric of a split.

        Args:
            split: ``val`` or ``test``.
            point: Share of the training steps.
        """
        return self.points.get(point, {}).get(f"{split}/{self.headline.metric}")


def check_folder(plan: Plan) -> None:
    """Look through all that a comparison's folder holds, before anything is trained that could not be compared with it.

    Args:
        plan: The comparison.

    Raises:
        MisconfigurationException: A result was made with another configuration.
    """
    for file in sorted(plan.results_folder.glob("*.json")):
        if json.loads(file.read_text(encoding="utf-8"))["recipe"] != plan.fingerprint:
            raise MisconfigurationException(
                f"{file} was made with another configuration than {plan.config} and the overrides given, so it cannot be compared. "
                f"Give another --out, or remove {plan.out} to start again."
            )


def load_result(plan: Plan, run: Run) -> Result | None:
    """Return the result of a run, or none if it has not finished.

    Args:
        plan: The comparison.
        run: The run.
    """
    file = plan.result_file(run)
    if not file.is_file():
        return None
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return Result(
        run=run,
        headline=Headline(**stored["headline"]),
        points=stored["points"],
        curve=stored["curve"],
        state_bytes=stored["state_bytes"],
        steps_per_second=stored["steps_per_second"],
        losses=tuple(stored.get("losses", ())),
        parameters=stored.get("parameters"),
    )


def select_by_validation(results: Sequence[Result]) -> Run:
    """Return a run of one optimizer at the setting with the best mean over seeds on the validation set.

    Args:
        results: Its results.
    """
    by_setting: dict[Setting, list[Result]] = {}
    for result in results:
        by_setting.setdefault(result.run.setting, []).append(result)

    def score(found: Sequence[Result]) -> float:
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


def select_each(results: Sequence[Result], optimizers: Sequence[str]) -> list[Run]:
    """Return a run of every optimizer at the setting that validation gives it.

    Args:
        results: The results to choose by.
        optimizers: The order.
    """
    return [select_by_validation([result for result in results if result.run.optimizer == name]) for name in optimizers]


def results_at(results: Sequence[Result], chosen: Sequence[Run]) -> dict[str, list[Result]]:
    """Return the results of every optimizer at the setting chosen for it.

    Args:
        results: All results.
        chosen: A run of each optimizer at its setting.
    """
    return {
        run.optimizer: [result for result in results if (result.run.optimizer, result.run.setting) == (run.optimizer, run.setting)]
        for run in chosen
    }
