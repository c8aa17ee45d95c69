"""One fit of AdamMiniCallback: what it comes to know, and how it converts what the module configures."""

from __future__ import annotations

import functools
import io
import logging
import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from torch.optim import Adam, AdamW, Optimizer

from lightning_adam_mini._warnings import AdamMiniWarning
from lightning_adam_mini.callbacks.combining import Combining
from lightning_adam_mini.callbacks.configured import (
    check_configured,
    check_rounding,
    configured_optimizers,
    cycle_beta1,
    what_differs,
    what_was_forced,
)
from lightning_adam_mini.callbacks.deepspeed import check_layouts
from lightning_adam_mini.callbacks.distribution import inform, misconfiguration, warn_on_rank_zero
from lightning_adam_mini.callbacks.measure import head_layouts, parameter_names
from lightning_adam_mini.callbacks.monitor import BlockLearningRateLogger
from lightning_adam_mini.callbacks.one_run import OneRun
from lightning_adam_mini.callbacks.probe import SECONDS, check_training_step, is_uncertain, probe_training_step, shown, why_not_again
from lightning_adam_mini.callbacks.strategies import as_unsharded, check_measurable, flat_shards_of, load_whole_checkpoints
from lightning_adam_mini.combine import combine_
from lightning_adam_mini.combine.combined import combined_in
from lightning_adam_mini.detection import ModelReport, ParameterReport, inspect_model
from lightning_adam_mini.detection.evidence import Evidence, example_call, probe_call
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim import AdamMini
from lightning_adam_mini.optim.convert import convert_optimizer_, unless_it_fails
from lightning_adam_mini.partition import SlimAdamAutoPartition, make_strategy, partition_model
from lightning_adam_mini.table import count

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lightning_adam_mini.callbacks.adam_mini import AdamMiniCallback

_log = logging.getLogger(__name__)
_IN_TRAINING: WeakKeyDictionary[Optimizer, AdamMiniCallback] = WeakKeyDictionary()
"""Which callback's fit an optimizer is in."""


@dataclass(eq=False)
class Run:
    """What one fit of a callback comes to know; a new one is made in each ``setup``.

    Attributes:
        asked: The callback, whose arguments say what is wanted.
        converted: The optimizers that were converted in this fit and in those before: LightningCLI returns one and the same on every fit,
            which is converted once.
        one_run: SlimAdam in one run, if it is asked for; an optimizer that was converted in an earlier fit goes on with it.
        logger: Logs effective learning rates, unless that is turned off.
        called: Whether ``configure_optimizers`` was called.
        report: What the module is.
        evidence: What running showed of it.
        probe_first_batch: Whether the first batch is still to be run once more.
        optimizers: The optimizers that train and are AdamMini.
        combining: Switches the weights of those that are combined with other methods; None where none is.
        resumed: What the checkpoint says of ``one_run``.
        last_logged_step: The step that was logged last.
        told_bytes: Whether the bytes of the optimizer's state were told.
        undo: What is to be undone when the fit ends, last first.
    """

    asked: AdamMiniCallback
    converted: WeakSet[AdamMini] = field(default_factory=WeakSet)
    one_run: OneRun | None = None
    logger: BlockLearningRateLogger | None = None
    called: bool = False
    report: ModelReport | None = None
    evidence: Evidence | None = None
    probe_first_batch: bool = False
    optimizers: list[AdamMini] = field(default_factory=list)
    combining: Combining | None = None
    resumed: dict[str, Any] | None = None
    last_logged_step: int = -1
    told_bytes: bool = False
    undo: list[Callable[[], None]] = field(default_factory=list)

    def next(self) -> Run:
        """The record of the fit after this one."""
        monitoring = self.asked.monitoring
        return Run(self.asked, self.converted, self.one_run, None if monitoring is None else BlockLearningRateLogger(monitoring))

    def end(self) -> None:
        """Undo what was done to others."""
        while self.undo:
            self.undo.pop()()

    # ---- convert ----------------------------------------------------------------------------------------------------------

    def convert(self, module: pl.LightningModule, configured: Any) -> None:
        """Convert the optimizers in what ``configure_optimizers`` returned, all of them or none."""
        self.called = True
        optimizers = configured_optimizers(configured)
        if not optimizers:
            warn_on_rank_zero("AdamMiniCallback has nothing to convert: configure_optimizers returned no optimizer.")
            return
        known = [o for o in optimizers if o in self.converted]
        new = [o for o in optimizers if not (isinstance(o, AdamMini) and o._made_as is None)]  # else it is the user's own
        # What was combined in an earlier fit goes on as it is.
        going_on = [o for o in combined_in(new) if o.part == self.asked.combine]
        new = [o for o in new if o not in going_on]
        names = parameter_names(module)
        # All checks come before the first change: if one fails, the user's optimizers are as they were.
        for optimizer in new:
            check_configured(optimizer, names, self.asked.force)
        for optimizer in new:
            if _IN_TRAINING.get(optimizer, self.asked) is not self.asked:
                raise misconfiguration(
                    f"The configured {type(optimizer).__name__} is in the fit of another AdamMiniCallback, and two cannot decide on its"
                    " blocks. Make an optimizer for each fit, or end the first one."
                )
        if self.asked.stochastic_rounding:
            check_rounding(new)
        flat_shards = flat_shards_of(module.trainer, module)
        with as_unsharded(module, flat_shards):
            self.report = self._inspect(module)
        if new:
            self._begin_one_run(module.trainer.strategy, again=bool(known))
            layouts = self.partition(self.report)
            check_layouts(module.trainer.strategy, layouts, self.asked.stochastic_rounding)
            kinds = ", ".join(dict.fromkeys(type(o).__name__ for o in new if not isinstance(o, AdamMini)))
            different = what_differs(new, layouts)
            forced = [what_was_forced(o) for o in new if type(o) not in (Adam, AdamW) and not isinstance(o, AdamMini)]
            with ExitStack() as stack:  # all or none
                for optimizer in new:
                    stack.enter_context(unless_it_fails(optimizer))
                for optimizer in new:
                    named = [(name, p) for p, name in names.items()]
                    convert_optimizer_(optimizer, layouts, named, force=True, flat_shards=flat_shards, **self._optimizer_options())
                    if self.asked.combine is not None:
                        combine_(optimizer, self.asked.combine, self.report)
                    optimizer._blocks.remedy = (
                        "Make its layer before the fit begins if it is to get blocks; where it takes the place of another, call"
                        " optimizer.replace_parameter(old, new, rows=...)."
                    )
            cycle_beta1(configured, new)
            self.converted.update(new)
            for optimizer in new:
                _IN_TRAINING[optimizer] = self.asked
                self.undo.append(functools.partial(_end_training, optimizer))
                if self.one_run is not None:
                    self.undo.append(self.one_run.reduce_learning_rate(optimizer))
            inform(module.trainer, self.report.table(layouts))
            for message in (*forced, *different):
                warn_on_rank_zero(message)
            if kinds:
                combined = "" if self.asked.combine is None else f", combined: {self.asked.combine}"
                inform(module.trainer, f"AdamMiniCallback: {kinds} keeps one second moment per block from now on (AdamMini{combined})")
        elif not combined_in(optimizers):
            if self.asked.combine is not None:
                raise misconfiguration(
                    f"AdamMiniCallback(combine={self.asked.combine.name!r}) combines what it converts, but configure_optimizers returned an"
                    " AdamMini itself. Return torch.optim.AdamW; or call lightning_adam_mini.combine_ on the AdamMini there."
                )
            inform(module.trainer, "AdamMiniCallback: configure_optimizers returned AdamMini itself, which is left as it is")
        load_whole_checkpoints(module.trainer.strategy)

    def partition(self, report: ModelReport) -> dict[str, BlockLayout]:
        """The blocks of the module's parameters, by the strategy of the moment."""
        asked = self.asked
        chosen, options = (asked.partition, asked.options or {}) if self.one_run is None else (self.one_run.strategy, {})

        def partition(strict: bool) -> dict[str, BlockLayout]:
            return partition_model(report, chosen, overrides=asked.overrides, strict=strict, **options)

        if not self.probe_first_batch:
            return partition(asked.strict)
        with warnings.catch_warnings():  # the first batch will tell
            warnings.simplefilter("ignore", AdamMiniWarning)
            return partition(strict=False)

    def _optimizer_options(self) -> dict[str, Any]:
        return {
            "convert_state": self.asked.convert_checkpoints,
            "momentum_dtype": self.asked.momentum_dtype,
            "stochastic_rounding": self.asked.stochastic_rounding,
        }

    def _begin_one_run(self, trained_by: Any, again: bool) -> None:
        strategy = make_strategy(self.asked.partition, **(self.asked.options or {}))
        if not isinstance(strategy, SlimAdamAutoPartition):
            self.one_run = None
            return
        check_measurable(trained_by, f"AdamMiniCallback(partition={self.asked.partition!r})")
        if not again:
            self.one_run = OneRun(strategy)
        if self.one_run is not None and self.resumed is not None:
            self.one_run.load_state_dict(self.resumed)

    # ---- inspect ------------------------------------------------------------------------------------------------------------

    def _inspect(self, module: pl.LightningModule) -> ModelReport:
        probe = self.asked.probe
        strategy = make_strategy(self.asked.partition, **(self.asked.options or {}))
        heads = strategy.needs_heads or (self.asked.monitoring is not None and self.asked.monitoring.heatmap)
        # How far it came in its time may differ between ranks, and neither blocks nor what is done next must.
        same_on_all: Callable[[Any], Any] = module.trainer.strategy.broadcast
        report = same_on_all(inspect_model(module, heads=heads, probe=probe is not False, evidence=self.evidence))
        unsettled = probe or (probe is None and heads and is_uncertain(report))
        if self.evidence is None and unsettled:
            self.evidence = same_on_all(self._run_whole(module))
            if self.evidence is not None:
                report = same_on_all(inspect_model(module, heads=heads, evidence=self.evidence))
        if self.logger is not None:
            self.logger.groups = {p.name: p.role.value for p in report.parameters}
            self.logger.heads = head_layouts(report)
        return report

    def _run_whole(self, module: pl.LightningModule) -> Evidence | None:
        """What the module shows on its example; None if it has none or, where nobody asked for it, fails: then the first batch, later."""
        if module.example_input_array is not None:
            args, kwargs = example_call(module.example_input_array)
            try:
                return probe_call(module, lambda: module(*args, **kwargs), (args, kwargs), seconds=SECONDS)
            except ValueError as error:
                if self.asked.probe:
                    raise
                _log.debug("The module was not probed: %s", error, exc_info=True)
        elif self.asked.probe:
            check_training_step(module)
            self.probe_first_batch = True
        else:
            self.probe_first_batch = why_not_again(module.trainer.strategy, module) is None
        return None

    def probe(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Run the first batch once more, and set the blocks by what that showed."""
        assert self.report is not None
        try:
            with nullcontext() if self.asked.probe else redirect_stdout(io.StringIO()):
                evidence = probe_training_step(trainer, module, batch, batch_idx)
        except ValueError as error:
            if self.asked.probe:
                raise
            _log.debug("The first batch was not probed: %s", error, exc_info=True)
            evidence = Evidence()
        self.evidence = trainer.strategy.broadcast(evidence)
        self.probe_first_batch = False
        before, self.report = self.report, self._inspect(module)
        layouts = self.partition(self.report)
        for optimizer in self.optimizers:
            if optimizer in self.converted:
                optimizer.set_layouts(layouts)
        known = before.by_name
        changed = [p for p in self.report.parameters if _what(p) != _what(known[p.name])]
        inform(
            trainer,
            f"AdamMiniCallback: the first batch ran through {count(len(self.evidence.attentions), 'softmax attention')} and corrected"
            f" {count(len(changed), 'parameter')}{': ' * bool(changed)}{', '.join(p.name for p in changed)}",
        )
        if changed:
            inform(trainer, self.report.table(layouts))

    def resume(self, trainer: pl.Trainer, evidence: Evidence) -> None:
        """Take over what running showed before the checkpoint was written.

        Raises:
            MisconfigurationException: If the optimizers have other blocks already.
        """
        # Lightning calls it before it asks for optimizers, whose saved states are of the blocks that running showed; but where it shards
        # the model itself, afterwards.
        if self.called and self.report is not None and self.converted:
            layouts = self.partition(self.report.corrected(shown(self.report, evidence)))
            present = {name: layout for optimizer in self.converted for name, layout in optimizer.layouts.items()}
            other = {name: layouts[name] for name in present if name in layouts and layouts[name] != present[name]}
            if other:
                name, layout = next(iter(other.items()))
                value = layout.lines if layout.lines is not None else {"dims": list(layout.dims)}
                raise misconfiguration(
                    f"The checkpoint was written with probe=True, which found other blocks for {count(len(other), 'parameter')}, {name!r}"
                    f" among them, than {type(trainer.strategy).__name__} can find without running the module. Give them as"
                    f" overrides={{{name!r}: {value!r}, ...}}."
                )
        self.evidence = evidence


def _end_training(optimizer: Optimizer) -> None:
    _IN_TRAINING.pop(optimizer, None)


def _what(p: ParameterReport) -> tuple[object, ...]:
    return p.role, p.owner, p.lines, p.axis
