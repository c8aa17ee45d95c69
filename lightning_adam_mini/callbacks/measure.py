"""Measuring the signal-to-noise ratio of a trainer's second moments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_adam_mini.analysis.derive_rules import derive_rules
from lightning_adam_mini.analysis.snr_history import SNRHistory
from lightning_adam_mini.callbacks.distribution import misconfiguration
from lightning_adam_mini.detection import ModelReport, parameter_names
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim import AdamMini
from lightning_adam_mini.optim.shards.dtensor import is_dtensor
from lightning_adam_mini.optim.shards.flat import FlatShard
from lightning_adam_mini.optim.shards.whole import highest_steps, whole_elements
from lightning_adam_mini.optim.state import SECOND
from lightning_adam_mini.partition.factored import FactoredPartition
from lightning_adam_mini.partition.rules import By, SlimAdamRules


def adam_second_moments(
    optimizers: Iterable[Optimizer], names: Mapping[Tensor, str], flat: Mapping[Tensor, FlatShard] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The second moments that have one value per element, with parameter names: of torch's Adam and AdamW, and of ours.

    Those that are sharded are gathered, one at a time: every rank has to call it, and to go through it. Others are not copied. Parameters
    that have not been stepped, or whose second moments are averaged already, are left out.

    Args:
        optimizers: The optimizers.
        names: The names of the parameters that are wanted.
        flat: Which range of each this rank holds, of parameters that FSDP1 has flattened.
    """
    flat = flat or {}
    for optimizer in optimizers:
        averaged = _averaged(optimizer)
        ours = [p for group in optimizer.param_groups for p in group["params"] if p in names and p not in averaged]
        of_ranges = {p: flat[p] for p in ours if p in flat}
        stepped = highest_steps({p: 1.0 for p in of_ranges if optimizer.state.get(p)}, of_ranges)
        for p in ours:
            kept = optimizer.state[p].get(SECOND.name) if p in optimizer.state else None
            is_stepped = p in stepped if p in of_ranges else kept is not None
            if is_stepped:
                whole = whole_elements(p, kept, flat.get(p))
                if p in of_ranges or whole.shape == p.shape:
                    yield names[p], whole


def _averaged(optimizer: Optimizer) -> set[Tensor]:
    """The parameters whose second moments are averaged."""
    if not isinstance(optimizer, AdamMini):
        return set()
    layouts = optimizer.layouts
    return {p for p, name in optimizer.parameter_names().items() if not layouts[name].is_per_parameter}


def is_sharded(optimizers: Iterable[Optimizer], flat: Mapping[Tensor, FlatShard]) -> bool:
    """Whether ranks hold parts of parameters, so that all of them have to measure together."""
    parameters = (p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
    return any(p in flat or is_dtensor(p) for p in parameters)


def check_has_second_moments(optimizers: Iterable[Optimizer]) -> None:
    """Refuse to measure where no optimizer is one of Adam's kind.

    Raises:
        MisconfigurationException: If none has a decay of second moments (``betas``).
    """
    kinds = {type(optimizer).__name__: optimizer for optimizer in optimizers}
    if not any("betas" in group or "beta2" in group for optimizer in kinds.values() for group in optimizer.param_groups):
        what = f"{' and '.join(kinds)} keeps none" if kinds else "configure_optimizers returned no optimizer"
        raise misconfiguration(f"SNRMonitor measures Adam's second moments, but {what}. Train with torch.optim.AdamW to measure.")


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


def measure(
    history: SNRHistory,
    step: int,
    module: nn.Module,
    optimizers: Iterable[Optimizer],
    report: ModelReport,
    flat: Mapping[Tensor, FlatShard] | None = None,
) -> Any:
    """Measure all second moments of a run once; returns what :meth:`SNRHistory.measure` returns.

    Where parameters are sharded every rank has to call it.
    """
    moments = adam_second_moments(optimizers, parameter_names(module), flat)
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
        "parameters": sum(math.prod(p.shape) for p in report.parameters if p.trainable),
        "lr": lr_scale * max(map(float, peaks), default=0.0),
        "steps": history.steps[-1] if history.steps else 0,
        "measurements": len(history.steps),
    }
    rules = derive_rules(report, history.averages(), cutoff, by, provenance, factored)
    trained = [p for p in report.parameters if p.trainable]
    blocks = sum((rules.layout_for(p) or BlockLayout(p.shape)).num_blocks for p in trained)
    rules.provenance["second_moments_kept"] = round(blocks / max(1, sum(math.prod(p.shape) for p in trained)), 6)
    return rules
