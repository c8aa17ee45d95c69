"""Timing of training steps; what lies between them, and the first of them, left out."""

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from typing_extensions import override


class StepTimer(Callback):
    """Measure the training steps, the other callbacks' hooks included; it must be the last callback.

    Args:
        warmup: Steps at the start of the run that are left out.
    """

    def __init__(self, warmup: int = 2) -> None:
        self.warmup = warmup
        self.seconds = 0.0
        self.steps = 0
        self._seen = 0
        self._started = 0.0

    @override
    def on_train_batch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int) -> None:
        """Note when a step starts."""
        self._started = time.perf_counter()

    @override
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step that has just ended."""
        self._seen += 1
        if self._seen > self.warmup:
            self.seconds += time.perf_counter() - self._started
            self.steps += 1

    def steps_per_second(self) -> float | None:
        """Return the mean speed, or none where too few steps were taken to tell."""
        return self.steps / self.seconds if self.steps else None
