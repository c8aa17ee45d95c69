"""Logs the effective learning rate of each block to every logger of a trainer."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from lightning_adam_mini.callbacks.distribution import is_lightnings
from lightning_adam_mini.callbacks.heatmap import draw_heads, require_matplotlib
from lightning_adam_mini.callbacks.loggers import add_scalars, log_metrics, loggers_of, logging_step, summary_writer, tag_prefix
from lightning_adam_mini.callbacks.summary import PREFIX, ParameterRates, group_tag, parts_of, summarize
from lightning_adam_mini.layout import BlockLayout

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import Logger
    from torch.utils.tensorboard import SummaryWriter


class HasBlockLearningRates(Protocol):
    """What is asked of an optimizer; :class:`~lightning_adam_mini.AdamMini` has it."""

    @property
    def layouts(self) -> Mapping[str, BlockLayout]:
        """Blocks of each parameter, by name."""
        ...

    def block_learning_rates(self) -> Mapping[str, Tensor]:
        """Effective learning rates by parameter name, for the parameters that have been stepped."""
        ...


class BlockLearningRateLogger:
    """Logs effective learning rates ``lr / (sqrt(v / (1 - beta2^t)) + eps)``, on rank zero and to every logger.

    Tags are ``effective_lr.<layer type>/<parameter>``, then ``/q.0`` for the head of a projection, or ``/min``, ``/median`` and ``/max``
    where there are many blocks (rows, tokens, elements). A parameter's tags appear with its first step and stay. TensorBoard also gets
    a page of custom scalars with one chart a layer type (one a role of a fused projection), which leaves out min and max.

    Args:
        histograms: Whether to log a histogram of log10 of the rates for each layer type (TensorBoard only).
        heatmap: Whether :meth:`log_heatmap` draws (TensorBoard only; needs matplotlib).
        max_blocks: Heads of a role in one parameter that are logged each by itself.
        groups: Layer type of each parameter by name; may be set later. [default: all ``"parameters"``]

    Raises:
        ModuleNotFoundError: If ``heatmap`` is asked for and matplotlib is missing.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(logger=False, enable_checkpointing=False)
        >>> BlockLearningRateLogger(groups={"fc.weight": "linear"}).log(trainer, optimizers=[])  # no logger: nothing to do
    """

    def __init__(
        self,
        histograms: bool = False,
        heatmap: bool = False,
        max_blocks: int = 64,
        groups: Mapping[str, str] | None = None,
    ) -> None:
        if max_blocks < 1:
            raise ValueError(f"max_blocks={max_blocks} leaves no head to log, because it has to be at least 1.")
        if heatmap:
            require_matplotlib()
        self.histograms = histograms
        self.heatmap = heatmap
        self.max_blocks = max_blocks
        self.groups: Mapping[str, str] = groups or {}
        self._charted: set[str] = set()

    def log(self, trainer: pl.Trainer, optimizers: Sequence[HasBlockLearningRates]) -> None:
        """Log all blocks once; call it on a logging step, on every rank. Waits for the device once, and not at all without a logger.

        Args:
            trainer: The trainer whose loggers are written to, at the step that Lightning logs at.
            optimizers: The optimizers to read.
        """
        loggers = loggers_of(trainer)
        if not loggers:
            return
        parameters = list(self._parameters(optimizers))  # on every rank: each may know of other blocks
        if not trainer.is_global_zero:
            return
        numbers, samples = summarize(parameters, self.max_blocks, self.histograms and any(map(summary_writer, loggers)))
        if not numbers:
            return
        step = logging_step(trainer)
        for logger in loggers:
            writer = summary_writer(logger)
            if writer is None:
                log_metrics(logger, numbers, step)
                continue
            prefix = tag_prefix(logger)
            self._add_charts(logger, writer, prefix, optimizers)
            add_scalars(writer, prefix, numbers, step)
            for group, values in samples.items():
                writer.add_histogram(f"{prefix}{group_tag(group)}/log10", values, step)

    def log_heatmap(self, trainer: pl.Trainer, optimizers: Sequence[HasBlockLearningRates]) -> None:
        """Log the figure of layers x heads, if it was asked for and there are heads; call it at the end of a validation, on every rank.

        Args:
            trainer: The trainer whose loggers are written to.
            optimizers: The optimizers to read.
        """
        if not self.heatmap:
            return
        loggers = [logger for logger in loggers_of(trainer) if is_lightnings(logger, "TensorBoardLogger")]
        parameters = list(self._parameters(optimizers)) if loggers else []
        if not trainer.is_global_zero:
            return
        writers = [(tag_prefix(logger), writer) for logger in loggers if (writer := summary_writer(logger)) is not None]
        for prefix, writer in writers:
            figure = draw_heads(parameters)  # a writer closes its figure
            if figure is not None:
                writer.add_figure(f"{prefix}{PREFIX}/heads", figure, logging_step(trainer))

    def _parameters(self, optimizers: Sequence[HasBlockLearningRates]) -> Iterator[ParameterRates]:
        for optimizer, layouts in zip(optimizers, _distinct_names(optimizers), strict=True):
            rates = optimizer.block_learning_rates()
            for name, (shown, layout) in layouts.items():
                if name in rates:
                    yield ParameterRates(shown, self.groups.get(name, "parameters"), layout, rates[name])

    def _add_charts(self, logger: Logger, writer: SummaryWriter, prefix: str, optimizers: Sequence[HasBlockLearningRates]) -> None:
        if writer.log_dir in self._charted:
            return
        self._charted.add(writer.log_dir)
        labels: dict[str, dict[str, None]] = {}
        for optimizer in optimizers:
            for name, layout in optimizer.layouts.items():
                here = dict.fromkeys(part.label for part in parts_of(layout, self.max_blocks))
                labels.setdefault(self.groups.get(name, "parameters"), {}).update(here)
        charts = {
            title: ["Multiline", [re.escape(f"{prefix}{group_tag(group)}/") + pattern]]
            for group, roles in labels.items()
            for title, pattern in _charts(group, roles)
        }
        writer.add_custom_scalars({"effective learning rate": charts})


def _charts(group: str, roles: Collection[str]) -> Iterator[tuple[str, str]]:
    """Title and pattern of the charts of a layer type: one, or one a role where its tensors are fused ones.

    A pattern and not a list of tags: TensorBoard's page sends all of a chart's in one request, which hundreds of tags would overflow.
    """
    if len(roles) == 1 or "" in roles:
        yield group, r"(?!.*/(?:min|max)$)"
    else:
        for role in roles:
            yield f"{group} {role}", rf".*/{role}(?:\.\d+|/median)?$"


def _distinct_names(optimizers: Sequence[HasBlockLearningRates]) -> list[dict[str, tuple[str, BlockLayout]]]:
    """Layouts by name, with the name to show: that of a parameter whose optimizer gave it no name can be another's as well."""
    layouts = [optimizer.layouts for optimizer in optimizers]
    owners: dict[str, list[Any]] = {}
    for i, names in enumerate(layouts):
        for name in names:
            owners.setdefault(name, []).append(i)
    return [
        {name: (name if len(owners[name]) == 1 else f"optimizer_{i}.{name}", layout) for name, layout in names.items()}
        for i, names in enumerate(layouts)
    ]
