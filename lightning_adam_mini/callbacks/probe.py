"""The first batch of a run as the example on which attention is probed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_adam_mini.analysis.audit.batch import nothing_logged
from lightning_adam_mini.callbacks.distribution import is_lightnings, misconfiguration
from lightning_adam_mini.detection.evidence import Evidence, probe_call
from lightning_adam_mini.detection.report import ModelReport, ParameterReport
from lightning_adam_mini.detection.roles import ATTENTION
from lightning_adam_mini.detection.shown import role_of_lines

SECONDS = 60.0
"""The most time that a run of the whole module takes for it; what was not seen by then stays as it was believed."""


def check_training_step(module: pl.LightningModule) -> None:
    """Refuse a module whose ``training_step`` cannot be run once more.

    Raises:
        MisconfigurationException: If it steps optimizers itself or takes the batches' iterator.
    """
    why = why_not_once_more(module)
    if why is not None:
        raise misconfiguration(
            f"AdamMiniCallback(probe=True) cannot run training_step once more because it {why}. Set self.example_input_array in the"
            " LightningModule to something that its forward takes, or drop probe=True."
        )


def why_not_again(strategy: Any, module: pl.LightningModule) -> str | None:
    """Why ``training_step`` cannot be run once more unasked: what it does or holds, or that its layers are sharded; None if it can."""
    if is_lightnings(strategy, "FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"):
        return f"is sharded by {type(strategy).__name__}"
    drawn = next((name for name, value in vars(module).items() if isinstance(value, Iterator)), None)
    return why_not_once_more(module) if drawn is None else f"may draw from {drawn!r}, which cannot be put back"


def why_not_once_more(module: pl.LightningModule) -> str | None:
    """Why ``training_step`` cannot be run once more, asked to: as what follows "because it"; None if it can."""
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        return "takes its batches from an iterator"
    return None if module.automatic_optimization else "steps its optimizers itself (automatic_optimization=False)"


def is_uncertain(report: ModelReport) -> bool:
    """Whether heads of attention, or what kind of network it is, are only likely."""
    return report.is_uncertain or any(p.guess and p.owner in ATTENTION for p in report.parameters)


def shown(report: ModelReport, evidence: Evidence) -> list[ParameterReport]:
    """The parameters that ``evidence`` is about, with its lines: for a module that is sharded by now and cannot be inspected again."""
    known = report.by_name
    return [
        replace(known[seen.name], lines=seen.lines, axis=seen.axis, guess=False)
        if seen.is_bias
        else replace(known[seen.name], lines=seen.lines, axis=seen.axis, role=role_of_lines(seen.lines), guess=False)
        for seen in evidence.parameters
        if seen.name in known and known[seen.name].shape == seen.shape
    ]


def probe_training_step(trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> Evidence:
    """Run ``training_step`` on a batch, without gradients and without a trace, and read off where its attention comes from.

    What it logs through ``self.log`` is dropped; what it hands to a logger directly is logged once more.

    Raises:
        ValueError: If it fails on the batch.
    """
    args = (batch, batch_idx) if is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2) else (batch,)
    with trainer.precision_plugin.train_step_context(), nothing_logged(module):
        return probe_call(module, lambda: module.training_step(*args), batch, seconds=SECONDS)
