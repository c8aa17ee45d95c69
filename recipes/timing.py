"""Timing of training steps, validation and the first steps left out."""

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from typing_extensions import override


class StepTimer(Callback):
    """Measure the time from the end of one training step to the end of the next, everything in between included.

    Args:
        warmup: Steps at the start of the run that are left out.
    """

    def __init__(self, warmup: int = 2) -> None:
        self.warmup = warmup
        self.seconds = 0.0
        self.steps = 0
        self._seen = 0
        self._last: float | None = None

    @override
    def on_train_epoch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Do not count what lies between two epochs."""
        self._last = None

    @override
    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Do not count a validation."""
        self._last = None

    @override
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step that has just ended, unless it was the first of its stretch."""
        now = time.perf_counter()
        self._seen += 1
        if self._last is not None and self._seen > self.warmup:
            self.seconds += now - self._last
            self.steps += 1
        self._last = now

    def steps_per_second(self) -> float | None:
        """Return the mean speed, or none where too few steps were taken to tell."""
        return self.steps / self.seconds if self.steps else None
