"""The first batch of a run as the example on which attention is probed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_adam_mini.callbacks.distribution import misconfiguration
from lightning_adam_mini.detection.evidence import Evidence, probe_call


def check_training_step(module: pl.LightningModule) -> None:
    """Refuse a module whose ``training_step`` cannot be run once more.

    Raises:
        MisconfigurationException: If it steps optimizers itself or takes the batches' iterator.
    """
    iterates = is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True)
    if not module.automatic_optimization or iterates:
        does = "takes its batches from an iterator" if iterates else "steps its optimizers itself (automatic_optimization=False)"
        raise misconfiguration(
            f"AdamMiniCallback(probe=True) cannot run training_step once more because it {does}. Set self.example_input_array in the"
            " LightningModule to something that its forward takes, or drop probe=True."
        )


def probe_training_step(trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> Evidence:
    """Run ``training_step`` on a batch, without gradients and without a trace, and read off where its attention comes from.

    What it logs through ``self.log`` is dropped; what it hands to a logger directly is logged once more.

    Raises:
        ValueError: If it fails on the batch.
    """
    args = (batch, batch_idx) if is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2) else (batch,)
    with trainer.precision_plugin.train_step_context(), _nothing_logged(module):
        return probe_call(module, lambda: module.training_step(*args), batch)


@contextmanager
def _nothing_logged(module: pl.LightningModule) -> Iterator[None]:
    vars(module)["log"] = lambda *args, **kwargs: None  # log_dict goes through it
    try:
        yield
    finally:
        vars(module).pop("log", None)
