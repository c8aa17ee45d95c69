"""Several things to do that take turns in one process, so that what else the machine does slows all alike."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

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
