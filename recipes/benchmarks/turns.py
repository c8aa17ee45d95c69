"""Several Trainers in one process that take turns, a few training steps each, so that what else the machine does slows all alike.

Each Trainer fits in a thread of its own, and only the thread whose turn it is runs: the others wait before their next training step.
"""

import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from typing_extensions import override


class Schedule:
    """Whose turn it is: every round holds each of the takers once, in random order.

    Args:
        takers: How many take turns.
        rounds: How many turns each has.
        seed: Seed of the order.
    """

    def __init__(self, takers: int, rounds: int, seed: int = 0) -> None:
        shuffle = random.Random(seed)
        self._order = [who for _ in range(rounds) for who in shuffle.sample(range(takers), takers)]
        self._position = 0
        self._failed = False
        self._changed = threading.Condition()

    def wait_for(self, who: int) -> None:
        """Block until it is someone's turn.

        Args:
            who: Number of the one who waits.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failed or self._order[self._position] == who)
            if self._failed:
                raise RuntimeError("another Trainer of the benchmark failed")

    def end_turn(self) -> None:
        """Let the next one run."""
        with self._changed:
            self._position += 1
            self._changed.notify_all()

    def fail(self) -> None:
        """Release everyone, with an error."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()


class TakeTurns(Callback):
    """Make a Trainer stop before every `steps`-th training step until its next turn, and time its turns.

    Args:
        schedule: Shared by all who take turns.
        who: This Trainer's number.
        steps: Training steps a turn.
    """

    def __init__(self, schedule: Schedule, who: int, steps: int) -> None:
        self.schedule = schedule
        self.who = who
        self.steps = steps
        self.seconds: list[float] = []
        self._taken = 0
        self._started: float | None = None

    @override
    def on_train_batch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int) -> None:
        """End the turn that is over, and wait for the next."""
        if self._taken % self.steps == 0:
            self._end_turn()
            self.schedule.wait_for(self.who)
            self._started = time.perf_counter()
        self._taken += 1

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """End the last turn."""
        self._end_turn()

    def _end_turn(self) -> None:
        if self._started is not None:
            self.seconds.append(time.perf_counter() - self._started)
            self.schedule.end_turn()
            self._started = None


def fit_in_turns(fits: Sequence[tuple[pl.Trainer, pl.LightningModule, Any]], turns: int, steps: int) -> list[list[float]]:
    """Fit several models in turns.

    Args:
        fits: Trainer, model and data of each; each Trainer's ``max_steps`` must be ``turns * steps``, without accumulation.
        turns: Turns of each.
        steps: Training steps a turn.

    Returns:
        The seconds of each turn of each fit.
    """
    schedule = Schedule(len(fits), turns)
    takers = [TakeTurns(schedule, who, steps) for who in range(len(fits))]
    errors: list[BaseException] = []

    def fit(who: int) -> None:
        trainer, model, data = fits[who]
        trainer.callbacks.insert(0, takers[who])  # pyright: ignore[reportAttributeAccessIssue]
        try:
            trainer.fit(model, datamodule=data)
        except BaseException as error:
            errors.append(error)
            schedule.fail()

    threads = [threading.Thread(target=fit, args=(who,), daemon=True) for who in range(len(fits))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [taker.seconds for taker in takers]
