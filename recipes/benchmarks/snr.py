"""What `SNRMonitor` costs a run: the time of its measurements beside that of the training steps between them."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_adam_mini import SNRMonitor
from recipes.cli import RecipeCLI
from recipes.files import write_atomically
from recipes.slim_adam.derive import edit_to_measure, recipe_lr


class TimedMonitor(SNRMonitor):
    """An `SNRMonitor` that keeps the CPU seconds of each of its measurements."""

    def __init__(self, every: int | None) -> None:
        super().__init__(every=every)
        self.seconds: list[float] = []

    @override
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure where it is time to, and time it."""
        measured, started = len(self.history.steps), time.process_time()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if len(self.history.steps) > measured:
            self.seconds.append(time.process_time() - started)

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Write nothing."""


class StepTime(Callback):
    """Keep the CPU seconds of each training step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    @override
    def on_train_batch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int) -> None:
        """Begin."""
        self._started = time.process_time()

    @override
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int) -> None:
        """End, before the monitor measures."""
        self.seconds.append(time.process_time() - self._started)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark.

    Args:
        argv: What follows ``benchmark snr``.
    """
    parser = argparse.ArgumentParser(
        prog="python -m recipes benchmark snr",
        description="Train with AdamW and SNRMonitor, and compare the CPU time of a measurement with that of the steps between two.",
        epilog="Further arguments are those of `python -m recipes fit`: --data.batch_size 32.",
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", type=Path, default=Path("configs/resnet18_digits.yaml"), help="the recipe's YAML")
    parser.add_argument("--cadence", type=int, default=100, help="steps between measurements that the share is of (default: %(default)s)")
    parser.add_argument("--every", type=int, default=5, help="steps between measurements here (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="training steps (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder of the results (default: %(default)s)")
    known, overrides = parser.parse_known_args(argv)
    if known.cadence < 1 or known.every < 1 or known.steps < 2 * known.every:
        parser.error(f"--steps {known.steps} must hold two measurements, --every {known.every} steps from each other")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    lr = recipe_lr(known.config)
    args = ["--config", str(known.config), *overrides, "--trainer.max_steps", str(known.steps), "--trainer.max_epochs", "-1"]
    cli = RecipeCLI(args, run=False, edit=lambda config: edit_to_measure(lr, config))
    monitor, steps = TimedMonitor(known.every), StepTime()
    cli.trainer.callbacks += [steps, monitor]  # pyright: ignore[reportAttributeAccessIssue]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    step, measurement = median(steps.seconds[1:]), median(monitor.seconds[1:])  # without the first, which warms up
    text = (
        f"{known.config.stem}: a training step takes {1e3 * step:.1f} ms of CPU time, a measurement {1e3 * measurement:.1f} ms"
        f" (medians of {len(steps.seconds) - 1} and {len(monitor.seconds) - 1}): {measurement / (known.cadence * step):.2%} of the run"
        f" with a measurement each {known.cadence} steps.\n"
    )
    write_atomically(known.out / f"snr_{known.config.stem}.txt", text)
    sys.stdout.write(f"\n{text}Written to {known.out / f'snr_{known.config.stem}.txt'}\n")
    return 0
