"""What a combination asks of a fit: which weights are in place when, and estimates of the Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_adam_mini.analysis.audit.batch import batch_loss, nothing_logged
from lightning_adam_mini.callbacks.distribution import is_lightnings, misconfiguration
from lightning_adam_mini.callbacks.probe import why_not_once_more
from lightning_adam_mini.combine import Combined, Part, Sophia
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
        self._batch: tuple[Any, int] | None = None
        self._undo: list[Callable[[], None]] = [module.register_state_dict_pre_hook(lambda *_: self.evaluate()).remove]
        for optimizer in combined_in(trainer.optimizers):
            self._undo.append(optimizer.register_step_post_hook(lambda *_: self.end_batch()).remove)

        for optimizer in combined_in(trainer.optimizers):
            self._check_estimates(optimizer, module)

    @staticmethod
    def _check_estimates(optimizer: Combined, module: pl.LightningModule) -> None:
        """Refuse a module of which Sophia's estimates cannot be made."""
        part = optimizer.part
        if not isinstance(part, Sophia):
            return
        if part.estimate == "gauss_newton_bartlett" and not callable(getattr(module, "sampled_loss", None)):
            raise misconfiguration(
                f"Sophia(estimate='gauss_newton_bartlett') needs a loss on labels that are drawn from the model's output: define"
                f" {type(module).__name__}.sampled_loss(batch, batch_idx), which returns it and the number of examples, or take"
                " estimate='hutchinson'."
            )
        if (why := why_not_once_more(module)) is not None:
            raise misconfiguration(
                f"AdamMiniCallback cannot make Sophia's estimates, because training_step {why}. Call optimizer.update_hessian(loss) there"
                " and use combine_ in configure_optimizers."
            )

    def estimate(self, module: pl.LightningModule, optimizer: Any) -> None:
        """Give Sophia an estimate if it is due, of the batch that is being trained on.

        Args:
            module: The module.
            optimizer: What is about to step.
        """
        if not isinstance(optimizer, Combined) or not optimizer.estimate_is_due or self._batch is None:
            return
        part = optimizer.part
        assert isinstance(part, Sophia)
        batch, batch_idx = self._batch
        strategy: Any = self._trainer.strategy
        ranks = torch.distributed.group.WORLD if is_lightnings(strategy, "DDPStrategy") and strategy.world_size > 1 else None
        devices = [module.device] if module.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), nothing_logged(module):
            with self._trainer.precision_plugin.train_step_context():
                if part.estimate == "hutchinson":
                    loss, examples = batch_loss(module, batch), None
                else:
                    part.seed_labels(optimizer.param_groups, module.device, self._trainer.global_rank)
                    loss, examples = module.sampled_loss(batch, batch_idx)  # type: ignore[operator]  # pyright: ignore[reportCallIssue]
            optimizer.update_hessian(loss, examples, ranks)

    def begin_batch(self, batch: Any, batch_idx: int) -> None:
        """Put the weights in place at which gradients are taken.

        Args:
            batch: The batch.
            batch_idx: Its number.
        """
        self._batch = batch, batch_idx
        for optimizer in combined_in(self._trainer.optimizers):
            optimizer.train()
        self._in_batch = True

    def end_batch(self) -> None:
        """Let the weights be switched again."""
        self._in_batch = False
        self._batch = None

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
