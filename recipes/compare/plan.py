"""What a comparison consists of: its runs, and the edit that turns a recipe's configuration into each of them."""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

CALLBACK = "AdamMiniCallback"
BASELINE = "adamw"
POINTS = (0.25, 0.5, 0.75, 1.0)  # shares of the training steps at which weights are measured


@dataclass(frozen=True)
class Run:
    """One training run of a comparison.

    Args:
        optimizer: ``adamw`` (the recipe without the callback) or the name of a partition, if need be with its momentum_dtype and
            options after colons: ``adam_mini:8bit``, ``slim_adam:rules=rules.yaml``.
        lr: Peak learning rate; none for the recipe's own.
        seed: Seed of everything random.
    """

    optimizer: str
    lr: float | None
    seed: int

    @property
    def name(self) -> str:
        """Name of the run, of its log and of its result."""
        rate = "" if self.lr is None else f"_lr{self.lr:g}"
        name = re.sub(r"[^\w.=-]", "-", self.optimizer)  # a file's name, which has no slash and not everywhere a colon
        return f"{name}{rate}_seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A comparison.

    Args:
        config: The recipe's YAML.
        overrides: Further arguments of ``python -m recipes fit``, such as ``--trainer.max_epochs 2``.
        out: Folder of the results.
        optimizers: Names, the first of which the others are compared with.
        lrs: Learning rates that every optimizer gets; empty for the recipe's own.
        seeds: Seeds that every optimizer and learning rate gets.
    """

    config: Path
    overrides: tuple[str, ...]
    out: Path
    optimizers: tuple[str, ...]
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]

    def runs(self) -> list[Run]:
        """Return the runs, seed by seed, so that an interrupted comparison has every optimizer at the seeds that it finished."""
        rates: Sequence[float | None] = self.lrs or (None,)
        return [Run(optimizer, lr, seed) for seed, lr, optimizer in itertools.product(self.seeds, rates, self.optimizers)]

    @property
    def args(self) -> list[str]:
        """The recipe's command line."""
        return ["--config", str(self.config), *self.overrides]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the recipe that tells results of another one apart."""
        recipe = [yaml.safe_load(self.config.read_text(encoding="utf-8")), *self.overrides]
        return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def result_file(self, run: Run) -> Path:
        """Return the file that holds the result of a run once it has finished.

        Args:
            run: The run.
        """
        return self.out / "runs" / f"{run.name}.json"


def callback_arguments(name: str) -> dict[str, Any]:
    """Return the arguments of `AdamMiniCallback` that a name stands for.

    Args:
        name: Name of an optimizer that is a partition.

    Example:
        >>> callback_arguments("adam_mini:value=whole:bfloat16")
        {'partition': 'adam_mini', 'options': {'value': 'whole'}, 'momentum_dtype': 'bfloat16'}
    """
    partition, *parts = name.split(":")
    arguments: dict[str, Any] = {"partition": partition}
    for part in parts:
        option, equals, value = part.partition("=")
        if equals:
            arguments.setdefault("options", {})[option] = value
        else:
            arguments["momentum_dtype"] = part
    return arguments


def edit_for(run: Run, out: Path, config: Namespace) -> None:
    """Turn the configuration of a recipe into that of a run: its optimizer and learning rate, its log under ``out``.

    The seed is not set here, because LightningCLI seeds before it lets anyone edit: it belongs on the command line.

    Args:
        run: The run.
        out: Folder of the comparison.
        config: The parsed configuration, changed in place.
    """
    if run.lr is not None:
        config.model.init_args.lr = run.lr
    callbacks: list[Namespace] = config.trainer.callbacks or []
    found = next((callback for callback in callbacks if callback.class_path.endswith(CALLBACK)), None)
    kept = [callback for callback in callbacks if not callback.class_path.endswith((CALLBACK, "ModelCheckpoint"))]
    if run.optimizer != BASELINE:
        callback = Namespace(class_path=f"lightning_adam_mini.{CALLBACK}", init_args=Namespace()) if found is None else found
        callback.init_args = Namespace({**vars(callback.init_args), **callback_arguments(run.optimizer)})
        kept.insert(0, callback)
    config.trainer.callbacks = kept
    logger = Namespace(save_dir=str(out), name="logs", version=run.name)
    config.trainer.logger = Namespace(class_path="lightning.pytorch.loggers.TensorBoardLogger", init_args=logger)
    config.trainer.enable_checkpointing = False
    config.trainer.enable_progress_bar = False
    config.trainer.enable_model_summary = False
