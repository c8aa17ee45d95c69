"""One run of a comparison: train, measure the weights at four points of the run, write one JSON file."""

import json
import math
from dataclasses import asdict
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from experiments.compare.plan import POINTS, Plan, Run, edit_for
from experiments.compare.trajectory import WeightRecorder, weights_file, write_weights
from experiments.result import commit, machine_text, versions
from experiments.timing import StepTimer
from lightning_adam_mini import AdamMini
from recipes.cli import RecipeCLI, end_averaging
from recipes.files import write_atomically
from recipes.summary import run_summary


class Snapshots(Callback):
    """Keep a copy of the weights at given shares of the training steps: of the averaged ones under weight averaging, as a checkpoint would.

    Args:
        points: The shares, the last of which is 1.
    """

    def __init__(self, points: tuple[float, ...] = POINTS) -> None:
        self.points = points
        self.weights: dict[float, dict[str, Tensor]] = {}

    @override
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int) -> None:
        """Copy the weights where a share is reached for the first time."""
        total = trainer.estimated_stepping_batches
        for point in self.points:
            if point not in self.weights and trainer.global_step >= math.ceil(point * total):
                checkpoint = {"state_dict": pl_module.state_dict()}
                for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
                    if isinstance(callback, WeightAveraging):
                        callback.on_save_checkpoint(trainer, pl_module, checkpoint)
                self.weights[point] = {name: value.detach().cpu().clone() for name, value in checkpoint["state_dict"].items()}


class Modes(Callback):
    """Switch the weights of a rival that is evaluated at others than it trains with; AdamMiniCallback does so for ours."""

    @override
    def on_train_batch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int) -> None:
        """Put in place what gradients are taken at."""
        self._switch(trainer, "train")

    @override
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int) -> None:
        """Put in place what is evaluated."""
        self._switch(trainer, "eval")

    @staticmethod
    def _switch(trainer: "pl.Trainer", mode: str) -> None:
        for optimizer in trainer.optimizers:
            if not isinstance(optimizer, AdamMini) and hasattr(optimizer, mode):
                getattr(optimizer, mode)()


class Curve(Callback):
    """Keep the loss of every training batch, and what the model logs at the end of each validation."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._losses: list[Tensor] = []

    @property
    def losses(self) -> list[float]:
        """The loss of every training batch."""
        return torch.stack(self._losses).tolist() if self._losses else []

    @override
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the loss where it is: to read it now would make a GPU wait."""
        self._losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Append the metrics of a validation."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append({"step": trainer.global_step, **metrics})


def prepare(plan: Plan, run: Run, threads: int | None) -> RecipeCLI:
    """Instantiate what a run needs.

    Args:
        plan: The comparison.
        run: The run.
        threads: Threads of torch, where several runs share the machine.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    return RecipeCLI([*plan.args, "--seed_everything", str(run.seed)], run=False, edit=partial(edit_for, run, plan.out))


def train(plan: Plan, run: Run, threads: int | None = None) -> None:
    """Train one run and write its result.

    Args:
        plan: The comparison.
        run: The run.
        threads: Threads of torch, where several runs share the machine.
    """
    cli = prepare(plan, run, threads)
    snapshots, curve, timer = Snapshots(), Curve(), StepTimer()
    trainer = cli.trainer
    trainer.callbacks += [Modes(), snapshots, curve, timer]  # pyright: ignore[reportAttributeAccessIssue]
    trainer.fit(cli.model, datamodule=cli.datamodule)
    if not snapshots.weights:
        raise MisconfigurationException(f"The run {run.name} took no training step, so there is nothing to compare.")
    summary = run_summary(trainer)
    trainer.loggers = []  # every further measurement would open another log file
    end_averaging(trainer)
    measured: dict[str, dict[str, float]] = {}
    for point, weights in sorted(snapshots.weights.items()):
        cli.model.load_state_dict(weights)
        measured[f"{point:g}"] = measure(trainer, cli)
    result = {
        "optimizer": run.optimizer,
        **asdict(run.setting),
        "seed": run.seed,
        "recipe": plan.fingerprint(run.optimizer),
        "headline": asdict(cli.model.headline),
        "points": measured,
        "curve": curve.rows,
        "losses": curve.losses,
        "state_bytes": summary.state_bytes,
        "parameters": sum(parameter.numel() for parameter in cli.model.parameters() if parameter.requires_grad),
        "steps": trainer.global_step,
        "steps_per_second": timer.steps_per_second(),
        "commit": commit(),
        "machine": machine_text(trainer.strategy.root_device),
        "versions": versions(),
    }
    write_atomically(plan.result_file(run), json.dumps(result, indent=1))


def record(plan: Plan, run: Run, points: int, threads: int | None = None) -> None:
    """Train one run, and write its weights at evenly spaced steps.

    Args:
        plan: The comparison.
        run: The run.
        points: How often.
        threads: Threads of torch, where several runs share the machine.
    """
    cli = prepare(plan, run, threads)
    cli.trainer.loggers = []
    recorder = WeightRecorder(points)
    cli.trainer.callbacks = [*(c for c in cli.trainer.callbacks if not isinstance(c, LearningRateMonitor)), recorder]  # pyright: ignore[reportAttributeAccessIssue]
    cli.trainer.limit_val_batches = 0
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    write_weights(recorder, weights_file(plan, run, points))


def measure(trainer: pl.Trainer, cli: RecipeCLI) -> dict[str, float]:
    """Return the validation and test metrics of a model's present weights.

    Args:
        trainer: Its trainer.
        cli: What holds the model and its data.
    """
    metrics: dict[str, float] = {}
    for measure_split in (trainer.validate, trainer.test):
        measure_split(cli.model, datamodule=cli.datamodule, verbose=False)
        metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    return metrics
