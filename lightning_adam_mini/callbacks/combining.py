"""What a combination asks of a fit: which weights are in place when, and estimates of the Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

from lightning_adam_mini.callbacks.distribution import is_lightnings, misconfiguration
from lightning_adam_mini.combine import Part
from lightning_adam_mini.combine.combined import combined_in

_SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def check_combination(part: Part, strategy: Any) -> None:
    """Refuse a strategy that shards parameters or their state. Every rank raises the same.

    Args:
        part: What is combined.
        strategy: The trainer's strategy.

    Raises:
        MisconfigurationException: If it does.
    """
    if is_lightnings(strategy, *_SHARDED):
        raise misconfiguration(
            f"AdamMiniCallback(combine={part.name!r}) does not go with {type(strategy).__name__}, which shards what {type(part).__name__}"
            " steps. Train under DDP, on one device, or without combine."
        )


class Combining:
    """Switches the weights of combined optimizers in one fit, so that nobody can forget to.

    Between batches whoever evaluates the module or asks it for its ``state_dict()`` (a checkpoint, a logger, a user) finds the weights
    that are to be evaluated; each batch begins with those at which gradients are taken. During a batch nothing is switched.

    Args:
        trainer: The trainer, whose optimizers are made.
        module: Its module.
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._trainer = trainer
        self._in_batch = False
        self._undo: list[Callable[[], None]] = [module.register_state_dict_pre_hook(lambda *_: self.evaluate()).remove]
        for optimizer in combined_in(trainer.optimizers):
            self._undo.append(optimizer.register_step_post_hook(lambda *_: self.end_batch()).remove)

    def begin_batch(self) -> None:
        """Put the weights in place at which gradients are taken."""
        for optimizer in combined_in(self._trainer.optimizers):
            optimizer.train()
        self._in_batch = True

    def end_batch(self) -> None:
        """Let the weights be switched again."""
        self._in_batch = False

    def evaluate(self) -> None:
        """Put the weights in place that are evaluated and saved, but not during a batch."""
        if not self._in_batch:
            for optimizer in combined_in(self._trainer.optimizers):
                optimizer.eval()

    def end(self) -> None:
        """Leave the weights that are evaluated in place."""
        for undo in self._undo:
            undo()
        self.end_batch()
        self.evaluate()
