"""The results of a comparison's finished runs, and the learning rate that each optimizer is given by validation."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from recipes.compare.plan import Plan, Run
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
    """

    run: Run
    headline: Headline
    points: dict[str, dict[str, float]]
    curve: list[dict[str, float]]
    state_bytes: int
    steps_per_second: float | None

    def metric(self, split: str, point: str = "1") -> float | None:
        """Return the headline metric of a split.

        Args:
            split: ``val`` or ``test``.
            point: Share of the training steps.
        """
        return self.points.get(point, {}).get(f"{split}/{self.headline.metric}")


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
    if stored["recipe"] != plan.fingerprint:
        raise MisconfigurationException(
            f"{file} was made with another configuration than {plan.config} and the overrides given, so it cannot be compared. "
            f"Give another --out, or remove {plan.out} to start again."
        )
    return Result(
        run=run,
        headline=Headline(**stored["headline"]),
        points=stored["points"],
        curve=stored["curve"],
        state_bytes=stored["state_bytes"],
        steps_per_second=stored["steps_per_second"],
    )


def select_by_validation(results: Iterable[Result]) -> list[Result]:
    """Return the results of one optimizer at the learning rate with the best mean over seeds on the validation set.

    Args:
        results: Its results.
    """
    by_rate: dict[float | None, list[Result]] = {}
    for result in results:
        by_rate.setdefault(result.run.lr, []).append(result)
    rates = list(by_rate)
    if len(rates) == 1:
        return by_rate[rates[0]]

    def score(rate: float | None) -> float:
        values = [value for result in by_rate[rate] if (value := result.metric("val")) is not None]
        if len(values) < len(by_rate[rate]):
            raise MisconfigurationException(
                f"{by_rate[rate][0].run.name} logged no val/{by_rate[rate][0].headline.metric}, by which a learning rate is selected."
            )
        mean = fmean(values)
        if math.isnan(mean):  # a run that diverged is the worst, where a comparison with nan would say anything
            return -math.inf
        return mean if by_rate[rate][0].headline.mode == "max" else -mean

    return by_rate[max(rates, key=score)]


def select_each(results: Sequence[Result], optimizers: Sequence[str]) -> dict[str, list[Result]]:
    """Return the results of every optimizer at the learning rate that validation gives it.

    Args:
        results: All results.
        optimizers: The order.
    """
    return {name: select_by_validation(result for result in results if result.run.optimizer == name) for name in optimizers}
