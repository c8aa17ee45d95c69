"""The one timing room: things, optimizers' steps and whole Trainers that take turns, so that what else the machine does slows all alike."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

COPY = "copy"  # its name among the things that take turns
TURN_SECONDS = 0.02  # what a turn should last at least, so that clocks are fine enough
MOST_A_TURN = 100
LEAST_ROUNDS = 6  # fewer have no 95 % interval


@dataclass
class Times:
    """Seconds that something took, by round.

    Args:
        wall: By the clock; on a GPU, by its events.
        cpu: Of all threads of the process; on a GPU, until the work was handed over.
        inner: Seconds of the part that it times itself, if it does.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    inner: list[float] = field(default_factory=list)


class Clock:
    """Wall and CPU seconds between `start` and `stop`; on a GPU, the wall is that of its events.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else None

    def start(self) -> None:
        """Start."""
        if self._events:
            torch.cuda.synchronize()
            self._events[0].record()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def stop(self) -> tuple[float, float]:
        """Return wall and CPU seconds since `start`."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        if self._events:
            self._events[1].record()
            torch.cuda.synchronize()
            wall = self._events[0].elapsed_time(self._events[1]) / 1e3
        return wall, cpu


def take_turns(
    tasks: Mapping[str, Callable[[], object]], rounds: int, seconds: float, device: torch.device, seed: int = 0
) -> dict[str, Times]:
    """Do every task once a round, in a new random order each round, and time it.

    A task that is over at once is repeated within its turn. Two calls of each warm up and are not counted.

    Args:
        tasks: What to do, by name. A task may return the seconds of a part of it.
        rounds: Rounds at most.
        seconds: Start no further round after so long, but take 6 at least, so that there are intervals.
        device: Where the work is done.
        seed: Seed of the order.
    """
    shuffle = random.Random(seed)
    clock = Clock(device)
    repeats: dict[str, int] = {}
    for name, task in tasks.items():
        task()  # the first call may still allocate
        clock.start()
        task()
        wall, _ = clock.stop()
        repeats[name] = min(MOST_A_TURN, math.ceil(TURN_SECONDS / max(wall, 1e-9)))
    times = {name: Times() for name in tasks}
    end = time.perf_counter() + seconds
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name in shuffle.sample(list(tasks), len(tasks)):
            task, count = tasks[name], repeats[name]
            clock.start()
            parts = [task() for _ in range(count)]
            wall, cpu = clock.stop()
            times[name].wall.append(wall / count)
            times[name].cpu.append(cpu / count)
            times[name].inner.append(sum(part for part in parts if isinstance(part, float)) / count)
    return times


class Copy:
    """Copy a tensor that no cache holds to another: how fast the machine moves what is bound by memory traffic.

    Args:
        device: Where.
        elements: Float32 elements of each of the two.
    """

    def __init__(self, device: torch.device, elements: int | None = None) -> None:
        elements = elements or 2 ** (28 if device.type == "cuda" else 25)
        self._from = torch.ones(elements, device=device)
        self._to = torch.zeros(elements, device=device)
        self.traffic = 8.0 * elements

    def __call__(self) -> None:
        """Copy once; `traffic` bytes are read or written."""
        self._to.copy_(self._from)


class StepTimer(Callback):
    """Time the training steps, what callbacks before it do in them included; what lies between them is left out.

    Args:
        warmup: Steps at the start of the run that are left out.
        clock: Tells the seconds.
    """

    def __init__(self, warmup: int = 2, clock: Callable[[], float] = time.perf_counter) -> None:
        self.warmup = warmup
        self.clock = clock
        self.seconds: list[float] = []
        self._seen = 0
        self._started = 0.0

    @override
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Note when a step starts."""
        self._started = self.clock()

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step that has just ended."""
        self._seen += 1
        if self._seen > self.warmup:
            self.seconds.append(self.clock() - self._started)

    def steps_per_second(self) -> float | None:
        """Return the mean speed, or none where too few steps were taken to tell."""
        return len(self.seconds) / sum(self.seconds) if self.seconds else None


class Schedule:
    """Whose turn it is, of Trainers that each fit in a thread of their own: every round holds each of the takers once, in random order.

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
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """End the turn that is over, and wait for the next."""
        if self._taken % self.steps == 0:
            self._end_turn()
            self.schedule.wait_for(self.who)
            self._started = time.perf_counter()
        self._taken += 1

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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
