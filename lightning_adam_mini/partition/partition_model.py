"""From a model to the blocks of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_adam_mini.detection.inspect import inspect_model
from lightning_adam_mini.detection.report import ModelReport
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.partition.overrides import Override, resolve_overrides
from lightning_adam_mini.partition.strategy import PartitionStrategy, make_strategy


def partition_model(
    model_or_report: nn.Module | ModelReport,
    partition: str | PartitionStrategy = "auto",
    overrides: Mapping[str, Override] | None = None,
    *,
    strict: bool = False,
    **options: Any,
) -> dict[str, BlockLayout]:
    """Decide which elements of each parameter share a second moment.

    Frozen parameters get a layout as well, because they may be unfrozen later.

    Args:
        model_or_report: A module, or what :func:`~lightning_adam_mini.detection.inspect_model` said of it.
        partition: A strategy or its name: ``"auto"`` (rows and columns of matrices and convolutions, rows of embeddings, elements of
            vectors), ``"factored"``, ``"adam_mini"``, ``"adam_mini_v1"``, ``"tensor"`` (or ``"adalayer"``), ``"adalayer_ln_tl"``,
            ``"adam"``, ``"muon"`` or ``"normuon"`` (hidden matrices orthogonalised, the rest as in ``"auto"``), or a name of your own (see
            :func:`~lightning_adam_mini.partition.register_strategy`).
        overrides: What you know better, by glob on the parameter's name; see :mod:`lightning_adam_mini.partition.overrides`.
        strict: Whether it is an error if the partition needs heads of attention that cannot be found; else each line is a block there,
            with a warning.
        **options: Options of the strategy, such as ``embedding="parameter"``, or of ``"adam_mini"`` ``value="whole"``, ``bias="tensor"``.

    Returns:
        The layout of each parameter, by its name in the report.

    Raises:
        ValueError: If the partition, an option or a spec is unknown, an override matches nothing, a layout does not fit, or, if
            ``strict``, heads are unknown.

    Example:
        >>> from lightning_adam_mini.detection.report import ParameterReport
        >>> from lightning_adam_mini.detection.roles import Architecture, Role
        >>> fused = ParameterReport("qkv.weight", (12, 4), Role.QKV, Role.QKV, "a fused projection", lines="q:2x2|k:2x2|v:2x2")
        >>> report = ModelReport(Architecture.TRANSFORMER, "softmax attention", (fused,))
        >>> print(partition_model(report, "adam_mini")["qkv.weight"])
        q:2x2|k:2x2|v:4x1 along dim 0
        >>> print(partition_model(report, "factored")["qkv.weight"])
        mean over dim 1 x mean over dim 0
        >>> print(partition_model(report, overrides={"qkv.*": "parameter"})["qkv.weight"].num_blocks)
        48
    """
    strategy = make_strategy(partition, **options)
    report = model_or_report if isinstance(model_or_report, ModelReport) else inspect_model(model_or_report, heads=strategy.needs_heads)
    resolved = resolve_overrides(report, overrides or {})
    decided = {name for name, r in resolved.items() if r.layout is not None or r.granularity is not None}
    corrected = report.corrected(r.parameter for r in resolved.values())
    layouts = strategy(corrected, [p.name for p in report.parameters if p.name not in decided], strict)
    for name, r in resolved.items():
        if r.layout is not None:
            layouts[name] = r.layout
        elif r.granularity is not None:
            layouts[name] = strategy.layout(r.parameter, r.granularity)
    for p in report.parameters:
        if p.name not in layouts or layouts[p.name].shape != p.shape:
            found = f"a layout for shape {layouts[p.name].shape}" if p.name in layouts else "no layout"
            raise ValueError(
                f"The strategy {strategy!r} gave {found} to parameter {p.name!r} of shape {p.shape}; correct it, or override {p.name!r}."
            )
    return {p.name: layouts[p.name] for p in report.parameters}
