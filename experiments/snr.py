"""What `SNRMonitor` costs a run: the time of its measurements beside that of the training steps between them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from experiments.options import recipe_parser
from experiments.result import new_result, publish
from experiments.slim_adam.room import edit_to_measure, recipe_lr
from experiments.timing import StepTimer
from lightning_adam_mini import SNRMonitor
from recipes.cli import RecipeCLI


class TimedMonitor(SNRMonitor):
    """An `SNRMonitor` that keeps the CPU seconds of each of its measurements."""

    def __init__(self, every: int | None) -> None:
        super().__init__(every=every)
        self.seconds: list[float] = []

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure where it is time to, and time it."""
        measured, started = len(self.history.steps), time.process_time()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if len(self.history.steps) > measured:
            self.seconds.append(time.process_time() - started)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write nothing."""


def main(argv: Sequence[str]) -> int:
    """Run the experiment.

    Args:
        argv: What follows ``snr``.
    """
    parser = recipe_parser(
        "snr", "Train with AdamW and SNRMonitor, and compare the CPU time of a measurement with that of the steps between two."
    )
    parser.add_argument("--cadence", type=int, default=100, help="steps between measurements that the share is of (default: %(default)s)")
    parser.add_argument("--every", type=int, default=5, help="steps between measurements here (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="training steps (default: %(default)s)")
    known, overrides = parser.parse_known_args(argv)
    if known.small:
        known.every, known.steps = 2, 4
    if known.cadence < 1 or known.every < 1 or known.steps < 2 * known.every:
        parser.error(f"--steps {known.steps} must hold two measurements, --every {known.every} steps from each other")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    lr = recipe_lr(known.config)
    args = ["--config", str(known.config), *overrides, "--trainer.max_steps", str(known.steps), "--trainer.max_epochs", "-1"]
    cli = RecipeCLI(args, run=False, edit=lambda config: edit_to_measure(lr, config))
    monitor, steps = TimedMonitor(known.every), StepTimer(warmup=1, clock=time.process_time)
    cli.trainer.callbacks = [steps, monitor]  # pyright: ignore[reportAttributeAccessIssue]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    step, measurement = median(steps.seconds), median(monitor.seconds[1:])  # without the first, which warms up
    text = (
        f"{known.config.stem}: a training step takes {1e3 * step:.1f} ms of CPU time, a measurement {1e3 * measurement:.1f} ms"
        f" (medians of {len(steps.seconds)} and {len(monitor.seconds) - 1}): {measurement / step:.0%} of a step,"
        f" {measurement / (known.cadence * step):.2%} of the run with a measurement each {known.cadence} steps."
    )
    row = {"config": known.config.stem, "step_seconds": step, "measurement_seconds": measurement, "cadence": known.cadence}
    publish(new_result("snr", "What SNRMonitor costs", argv, text=text, rows=[row]), known.out, name=f"snr_{known.config.stem}")
    return 0
