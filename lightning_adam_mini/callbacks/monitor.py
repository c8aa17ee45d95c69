"""Logs the effective learning rate of each block to every logger of a trainer."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from lightning_adam_mini.callbacks.distribution import inform, warn_on_rank_zero
from lightning_adam_mini.callbacks.heatmap import draw_heads, draw_lines
from lightning_adam_mini.callbacks.legend import LEGEND, describe, where_it_goes, why_no_figures
from lightning_adam_mini.callbacks.loggers import add_scalars, log_metrics, loggers_of, logging_step, summary_writer, tag_prefix
from lightning_adam_mini.callbacks.monitoring import Monitoring
from lightning_adam_mini.callbacks.summary import PREFIX, RATIO, VECTORS, ParameterRates, group_tag, parts_of, summarize
from lightning_adam_mini.callbacks.updates import summarize_updates
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.adam_mini import MatrixUpdates

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from torch.utils.tensorboard import SummaryWriter


class HasLearningRates(Protocol):
    """What is asked of an optimizer; :class:`~lightning_adam_mini.AdamMini` has it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of parameters, with ``lr`` and ``eps``, in the order of ``layouts``."""
        ...

    @property
    def layouts(self) -> Mapping[str, BlockLayout]:
        """Blocks of each parameter, by name."""
        ...

    def margin_learning_rates(self) -> Mapping[str, Sequence[Tensor]]:
        """Effective learning rates of each margin by parameter name, for the parameters that have been stepped."""
        ...

    def matrix_updates(self) -> Mapping[str, MatrixUpdates]:
        """Sizes of the last updates of orthogonalised matrices, by parameter name."""
        ...


class BlockLearningRateLogger:
    """Logs effective learning rates ``lr / (sqrt(v / (1 - beta2^t)) + eps)``, on rank zero and to every logger.

    Tags are ``weight_lr.<layer type>/<parameter>``, then ``/q.0`` for the head of a projection, or ``/min``, ``/median`` and ``/max``
    where there are many blocks (rows, tokens, elements). Biases, norms and other vectors have ``weight_lr.vectors/<kind>/min`` and so on,
    of all of a kind. A factored parameter has ``/row/min`` and so on, of what the rates would be if the means of rows (its lines: output
    neurons, channels) were the second moments, and ``/column/min`` and so on of those across. An element's rate follows from both: its
    inverse, without ``eps``, is the product of theirs over the root mean square of the columns'. A parameter's tags appear with its first
    step and stay.

    What has a rate has ``weight_lr_ratio.<...>`` too, its rate over the learning rate of its group, but for min and max. What steps by
    orthogonalised matrices has ``weight_update.<layer type>/<parameter>/rms``, the root mean square of its last update, and ``/ratio``,
    that over the weights' own (of several matrices min, median and max); of NorMuon also ``/row/min`` and so on, of the learning rates of
    rows. All of these sort below ``train/`` and ``val/``.

    TensorBoard also gets a description of each tag, a text on how to read them, and a page of custom scalars with one chart a layer type
    (one a role of a fused projection, one for rows and one for columns), of the ratios and of the rates, without min and max.

    Args:
        monitoring: What is asked for.
        groups: Layer type of each parameter by name; may be set later. [default: all ``"parameters"``]
        heads: The lines of parameters that are heads, by name, for the figure of heads where blocks are finer than these; may be set later.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(logger=False, enable_checkpointing=False)
        >>> BlockLearningRateLogger(groups={"fc.weight": "linear"}).log(trainer, optimizers=[])  # no logger: nothing to do
    """

    def __init__(
        self,
        monitoring: Monitoring = Monitoring(),  # noqa: B008  (frozen)
        groups: Mapping[str, str] | None = None,
        heads: Mapping[str, BlockLayout] | None = None,
    ) -> None:
        self.monitoring = monitoring
        self.groups: Mapping[str, str] = groups or {}
        self.heads: Mapping[str, BlockLayout] = heads or {}
        self._described: dict[str, set[str]] = {}
        self._told = False
        self._drawn_at = -1

    def begin(self, trainer: pl.Trainer) -> None:
        """Say where the curves will be found; call it when the fit begins.

        Warns:
            AdamMiniWarning: If figures or histograms are asked for, and no logger takes them.
        """
        inform(trainer, f"AdamMiniCallback: {where_it_goes(trainer)}")
        asked = [name for name in ("histograms", "heatmap") if getattr(self.monitoring, name)]
        if asked and trainer.is_global_zero and (why := why_no_figures(trainer)) is not None:
            self._told = True
            what = " and ".join(f"{name}=True" for name in asked)
            warn_on_rank_zero(f"{what} draw{'s' * (len(asked) == 1)} nothing, because {why}, or leave it out.")

    def log(self, trainer: pl.Trainer, optimizers: Sequence[HasLearningRates]) -> None:
        """Log all blocks once; call it on a logging step, on every rank. Waits for the device once, and not at all without a logger.

        Args:
            trainer: The trainer whose loggers are written to, at the step that Lightning logs at.
            optimizers: The optimizers to read.
        """
        loggers = loggers_of(trainer)
        if not loggers:
            return
        parameters = list(self._parameters(optimizers))  # on every rank: each may know of other blocks
        names = [{name: shown for name, (shown, _) in layouts.items()} for layouts in _distinct_names(optimizers)]
        updates: dict[str, float] = {}
        for optimizer, shown in zip(optimizers, names, strict=True):
            updates |= summarize_updates(optimizer.matrix_updates(), shown, self.groups)
        if not trainer.is_global_zero:
            return
        asked = self.monitoring
        histograms = asked.histograms and any(map(summary_writer, loggers))
        numbers, samples = summarize(parameters, asked.max_heads, histograms, asked.vectors)
        numbers |= updates
        if not numbers:
            return
        step = logging_step(trainer)
        for logger in loggers:
            writer = summary_writer(logger)
            if writer is None:
                log_metrics(logger, numbers, step)
                continue
            prefix = tag_prefix(logger)
            add_scalars(writer, prefix, numbers, step, self._begin_charts(writer, prefix, optimizers, numbers))
            for group, values in samples.items():
                if len(values := values[values.isfinite()]):  # a rate of 0 begins many a warm-up
                    writer.add_histogram(f"{prefix}{group_tag(group)}/log10", values, step)

    def log_heatmap(self, trainer: pl.Trainer, optimizers: Sequence[HasLearningRates]) -> None:
        """Log figures, if they were asked for; call it at the end of a validation, on every rank.

        One of layers x heads (tag ``weight_lr/heads``) where attention heads are known, and one of layers x quantiles of what else tells
        the blocks of a matrix apart, rows and columns of factored ones (``weight_lr/lines``).

        Args:
            trainer: The trainer whose loggers are written to.
            optimizers: The optimizers to read.

        Warns:
            AdamMiniWarning: Once, if there is nothing to draw.
        """
        writers = [(tag_prefix(logger), writer) for logger in loggers_of(trainer) if (writer := summary_writer(logger)) is not None]
        if not self.monitoring.heatmap or not writers or self._drawn_at == trainer.global_step:
            return
        parameters = list(self._parameters(optimizers))
        if not parameters:  # nothing has been stepped
            return
        self._drawn_at = trainer.global_step
        figures = [(f"{PREFIX}/{name}", draw) for name, draw in (("heads", draw_heads), ("lines", draw_lines))]
        drawn = False
        for prefix, writer in writers if trainer.is_global_zero else []:
            for tag, draw in figures:
                figure = draw(parameters)  # a writer closes its figure
                if figure is not None:
                    writer.add_figure(f"{prefix}{tag}", figure, logging_step(trainer))
                    drawn = True
        if not drawn and not self._told and trainer.is_global_zero:
            self._told = True
            warn_on_rank_zero(
                "heatmap=True draws nothing, because no matrix that has been stepped has more than one learning rate. Choose a partition"
                " that gives them more, or leave heatmap out."
            )

    def _parameters(self, optimizers: Sequence[HasLearningRates]) -> Iterator[ParameterRates]:
        for optimizer, layouts in zip(optimizers, _distinct_names(optimizers), strict=True):
            rates = optimizer.margin_learning_rates()
            groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
            for (name, (shown, layout)), group in zip(layouts.items(), groups.values(), strict=False):
                if name in rates:
                    lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
                    floor = group["eps"] / lr if isinstance(lr, Tensor) or lr else math.inf
                    yield ParameterRates(shown, self.groups.get(name, "parameters"), layout, rates[name], floor, self.heads.get(name), lr)

    def _begin_charts(
        self, writer: SummaryWriter, prefix: str, optimizers: Sequence[HasLearningRates], tags: Collection[str]
    ) -> dict[str, str]:
        """Lay out the charts of a log that is new; returns what is to be said of the tags that are new to it."""
        described = self._described.get(writer.log_dir)
        if described is None:
            described = self._described[writer.log_dir] = set()
            self._add_charts(writer, prefix, optimizers)
            writer.add_text(f"{prefix}{PREFIX}/how to read these charts", LEGEND)
        new = [tag for tag in tags if tag not in described]
        described.update(new)
        return {tag: describe(tag) for tag in new}

    def _add_charts(self, writer: SummaryWriter, prefix: str, optimizers: Sequence[HasLearningRates]) -> None:
        labels: dict[str, dict[str, None]] = {}
        for optimizer in optimizers:
            for name, layout in optimizer.layouts.items():
                group = self.groups.get(name, "parameters")
                if not self.monitoring.vectors and sum(size > 1 for size in layout.shape) < 2:
                    labels.setdefault(VECTORS, {})[""] = None
                elif parts := parts_of(layout, self.monitoring.max_heads):
                    labels.setdefault(group, {}).update(dict.fromkeys(part.label for part in parts))
        writer.add_custom_scalars(
            {
                heading: {
                    title: ["Multiline", [re.escape(f"{prefix}{group_tag(group, first)}/") + pattern]]
                    for group, roles in labels.items()
                    for title, pattern in _charts(group, roles)
                }
                for heading, first in (("effective learning rate / learning rate", RATIO), ("effective learning rate", PREFIX))
            }
        )


_TITLES = {"q": "queries", "k": "keys", "v": "values", "row": "rows", "column": "columns"}


def _charts(group: str, roles: Collection[str]) -> Iterator[tuple[str, str]]:
    """Title and pattern of the charts of a layer type: one, or one a role where its tensors are fused ones.

    A pattern and not a list of tags: TensorBoard's page sends all of a chart's in one request, which hundreds of tags would overflow.
    """
    if len(roles) == 1 or "" in roles:
        yield group, r"(?!.*/(?:min|max)$)"
    else:
        for role in roles:
            yield f"{group}: {_TITLES.get(role, role)}", rf".*/{role}(?:\.\d+|/median)?$"


def _distinct_names(optimizers: Sequence[HasLearningRates]) -> list[dict[str, tuple[str, BlockLayout]]]:
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
