"""Measuring the signal-to-noise ratio of a trainer's second moments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_adam_mini.analysis.derive_rules import derive_rules
from lightning_adam_mini.analysis.snr_history import SNRHistory
from lightning_adam_mini.detection import ModelReport, parameter_names
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim import AdamMini
from lightning_adam_mini.optim.state import SECOND
from lightning_adam_mini.partition.factored import FactoredPartition
from lightning_adam_mini.partition.rules import By, SlimAdamRules


def adam_second_moments(optimizers: Iterable[Optimizer], names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The second moments that have one value an element, by parameter name: of torch's Adam and AdamW, and of ours.

    Nothing is copied. Parameters that have not been stepped, or whose second moments are averaged already, are left out.
    """
    return {
        names[p]: state[SECOND.name]
        for optimizer in optimizers
        for p, state in optimizer.state.items()
        if p in names and isinstance(v := state.get(SECOND.name), Tensor) and v.shape == p.shape
    }


def averaged_matrix(optimizers: Iterable[Optimizer]) -> str | None:
    """The name of a matrix whose second moment is averaged, or None."""
    layouts = (item for optimizer in optimizers if isinstance(optimizer, AdamMini) for item in optimizer.layouts.items())
    return next((name for name, layout in layouts if not layout.is_per_parameter and sum(size > 1 for size in layout.shape) > 1), None)


def head_layouts(report: ModelReport) -> dict[str, BlockLayout]:
    """The blocks that are heads, by parameter name."""
    return {p.name: BlockLayout.grouped(p.shape, p.lines, p.axis) for p in report.parameters if p.lines is not None and len(p.shape) > 1}


def factored_layouts(report: ModelReport) -> dict[str, BlockLayout]:
    """Rows crossed with columns, by parameter name, where that saves anything."""
    layouts = {p.name: FactoredPartition().layout(p, "factored") for p in report.parameters}
    return {name: layout for name, layout in layouts.items() if layout.is_factored}


def measure(history: SNRHistory, step: int, module: nn.Module, optimizers: Iterable[Optimizer], report: ModelReport) -> Any:
    """Measure all second moments of a run once; returns what :meth:`SNRHistory.measure` returns."""
    moments = adam_second_moments(optimizers, parameter_names(module))
    return history.measure(step, moments, head_layouts(report), factored_layouts(report))


def rules_of_run(
    history: SNRHistory,
    module: nn.Module,
    optimizers: Iterable[Optimizer],
    report: ModelReport,
    cutoff: float,
    by: By,
    lr_scale: float = 1.0,
    factored: bool = False,
) -> SlimAdamRules:
    """The rules that a run's measurements give, with where they come from."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group.get("max_lr", group.get("initial_lr", group["lr"])) for group in groups]
    provenance = {
        "model": type(module).__name__,
        "architecture": report.architecture.value,
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "lr": lr_scale * max(map(float, peaks), default=0.0),
        "steps": history.steps[-1] if history.steps else 0,
        "measurements": len(history.steps),
    }
    rules = derive_rules(report, history.averages(), cutoff, by, provenance, factored)
    trained = [p for p in report.parameters if p.trainable]
    blocks = sum((rules.layout_for(p) or BlockLayout(p.shape)).num_blocks for p in trained)
    rules.provenance["second_moments_kept"] = round(blocks / max(1, sum(math.prod(p.shape) for p in trained)), 6)
    return rules
