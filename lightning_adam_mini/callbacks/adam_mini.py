"""AdamMiniCallback: inspect, partition, convert, monitor."""

from __future__ import annotations

import functools
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext, redirect_stdout
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim import Adam, AdamW, Optimizer
from typing_extensions import override

from lightning_adam_mini._warnings import AdamMiniWarning
from lightning_adam_mini.callbacks.configured import (
    Intercepted,
    check_configured,
    configured_optimizers,
    cycle_beta1,
    what_differs,
    what_was_forced,
)
from lightning_adam_mini.callbacks.distribution import inform, misconfiguration
from lightning_adam_mini.callbacks.measure import head_layouts, parameter_names
from lightning_adam_mini.callbacks.monitor import BlockLearningRateLogger
from lightning_adam_mini.callbacks.one_run import OneRun
from lightning_adam_mini.callbacks.probe import SECONDS, check_training_step, is_uncertain, probe_training_step, shown, why_not_again
from lightning_adam_mini.callbacks.strategies import (
    as_unsharded,
    check_measurable,
    check_strategy,
    is_whole,
    load_whole_checkpoints,
    number_as_in,
    sharded_by_fsdp1,
    share_work,
)
from lightning_adam_mini.detection import ModelReport, ParameterReport, inspect_model
from lightning_adam_mini.detection.evidence import Evidence, example_call, probe_call
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim import AdamMini, adamw_bytes, state_bytes, to_adamw_state_dict
from lightning_adam_mini.optim.codecs import NAMES, MomentumName
from lightning_adam_mini.optim.convert import convert_optimizer_, unless_it_fails
from lightning_adam_mini.partition import PartitionStrategy, SlimAdamAutoPartition, make_strategy, partition_model

_log = logging.getLogger(__name__)
_EVIDENCE = "adam_mini_evidence"
_ONE_RUN = "slim_adam"
_SETTINGS = frozenset(
    {
        "partition", "overrides", "options", "strict", "probe", "force", "convert_checkpoints", "momentum_dtype", "stochastic_rounding",
        "_monitor",
    }
)  # fmt: skip
_IN_TRAINING: WeakKeyDictionary[Optimizer, AdamMiniCallback] = WeakKeyDictionary()
"""Which callback's fit an optimizer is in."""


def _end_training(optimizer: Optimizer) -> None:
    _IN_TRAINING.pop(optimizer, None)


def _what(p: ParameterReport) -> tuple[object, ...]:
    return p.role, p.owner, p.lines, p.axis


class AdamMiniCallback(Callback):
    r"""Makes the configured AdamW or Adam keep one second moment per block, which halves the optimizer's memory.

    The model is inspected and partitioned into blocks. The optimizers that ``configure_optimizers`` returned become
    :class:`~lightning_adam_mini.AdamMini` in place: they stay the same objects, so that whatever holds one (schedulers, hooks, attributes)
    goes on steering the training. Each block's effective learning rate is logged to every logger. Checkpoints load with the callback and
    without it. After the fit they stay as they are: to go back, make a new AdamW and load ``to_adamw_state_dict(optimizer.state_dict())``.

    Args:
        partition: What a block is: ``auto`` (the means of rows and of columns; embeddings by row), ``factored``, ``adam_mini`` (v2),
            ``adam_mini_v1``, ``tensor``, ``adalayer_ln_tl``, ``adam``, ``slim_adam`` (with ``options={"rules": "rules.yaml"}``),
            ``slim_adam_table3``, ``slim_adam_auto`` (Adam at first; after ``options={"steps": 1000}`` steps blocks by what was
            measured), or a :class:`~lightning_adam_mini.PartitionStrategy`.
        overrides: Blocks of single parameters, by glob over their names: see :func:`~lightning_adam_mini.partition_model`.
        options: Options of the partition, such as ``{"embedding": "parameter"}``.
        strict: Whether it is an error if the partition needs heads of attention that cannot be found; else each line is a block there,
            with a warning.
        probe: Whether to run the module once more than training does, so that attention that is written by hand is partitioned by the heads
            that it really has: its ``forward`` on its ``example_input_array`` (Lightning's attribute) if it has one, else its
            ``training_step`` on the first batch, for at most 60 seconds. What running showed is saved in checkpoints. [default: where the
            partition needs heads and looking at the module, and running its attention alone on made-up inputs, did not find them; False:
            nothing is run]
        force: Whether to convert other optimizers than exactly torch's Adam and AdamW too. They keep their groups' lr, betas, eps and
            weight decay, which may not suit AdamMini: a message says what was taken over.
        convert_checkpoints: Whether a checkpoint written with other blocks (by AdamW: per parameter) may be resumed; its second moments are
            averaged or spread then. If False, that is an error.
        momentum_dtype: What first moments are kept in: ``float32``, ``bfloat16`` or ``8bit``; None for the parameters' dtype. A checkpoint
            written with another is converted.
        stochastic_rounding: Whether bfloat16 weights (``precision="bf16-true"``) are rounded at random, so that small updates are not lost.
        monitor: Whether to log effective learning rates, each ``log_every_n_steps`` of the trainer.
        histograms: Whether to log their histograms too (TensorBoard only).
        heatmap: Whether to log figures at the end of each validation (TensorBoard only; needs matplotlib): layers x heads where heads are
            known, whatever the blocks are, and layers x quantiles of the rows and columns of other matrices and convolutions.

    Raises:
        MisconfigurationException: If the trainer has two of these callbacks; if an optimizer has no faithful translation, a ``step`` of
            its own that would hide AdamMini's, parameters that are not the module's, or is in another callback's fit.
        ValueError: If the partition, an option or an override is not valid for this model.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[AdamMiniCallback()], logger=False, enable_checkpointing=False)

    """

    def __init__(
        self,
        partition: str | PartitionStrategy = "auto",
        overrides: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        *,
        strict: bool = False,
        probe: bool | None = None,
        force: bool = False,
        convert_checkpoints: bool = True,
        momentum_dtype: MomentumName | None = None,
        stochastic_rounding: bool = False,
        monitor: bool = True,
        histograms: bool = False,
        heatmap: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(partition, (str, PartitionStrategy)):
            raise misconfiguration(f"AdamMiniCallback has no partition={partition!r}. Give a name, such as 'auto', or a PartitionStrategy.")
        if overrides is not None and not isinstance(overrides, Mapping):
            raise misconfiguration(
                f"AdamMiniCallback takes overrides as a dict of blocks by glob, such as {{'*': 'tensor'}}, not {overrides!r}."
            )
        self.partition = partition
        self.overrides = overrides
        self.options = options
        self.strict = strict
        self.probe = probe
        self.force = force
        self.convert_checkpoints = convert_checkpoints
        if momentum_dtype is not None and momentum_dtype not in NAMES:
            raise misconfiguration(
                f"AdamMiniCallback has no momentum_dtype={momentum_dtype!r}. Give one of {', '.join(map(repr, NAMES))}, or None"
                " for the parameters' dtype."
            )
        self.momentum_dtype = momentum_dtype
        self.stochastic_rounding = stochastic_rounding
        self._monitor: dict[str, Any] | None = {"histograms": histograms, "heatmap": heatmap} if monitor else None
        self._reset()

    def _reset(self) -> None:
        # LightningCLI returns one and the same optimizer on every fit, which is converted once.
        self._converted: WeakSet[AdamMini] = WeakSet()
        self._undo: list[Callable[[], None]] = []
        self._optimizers: list[AdamMini] = []
        self._called = False
        self._probe_first_batch = False
        self._last_logged_step = -1
        self._told_bytes = False
        self._resumed: dict[str, Any] | None = None
        self.report: ModelReport | None = None
        self._evidence: Evidence | None = None
        self._one_run: OneRun | None = None
        self._logger = None if self._monitor is None else BlockLearningRateLogger(**self._monitor)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has the settings and nothing of a fit, so that a pickle is small and names no class but this one.
        return {name: value for name, value in vars(self).items() if name in _SETTINGS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    # ---- convert --------------------------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if self._undo:
            raise misconfiguration(
                "This AdamMiniCallback is in a fit already, whose optimizers it would lose. Give the inner trainer a callback of its own."
            )
        twins = [callback for callback in trainer.callbacks if isinstance(callback, AdamMiniCallback)]  # type: ignore[attr-defined]
        if len(twins) > 1:
            raise misconfiguration(
                f"The trainer has {len(twins)} AdamMiniCallbacks, and only one can convert the optimizer. Keep one; give it"
                " overrides={...} if parts of the model need different blocks."
            )
        check_strategy(trainer.strategy, bool(self.probe))
        self._optimizers, self._called, self._last_logged_step, self._told_bytes = [], False, -1, False
        self._evidence, self._probe_first_batch, self._resumed = None, False, None
        # Converting what the module returns, before Lightning or anything else sees it, works under every strategy.
        self._undo.append(Intercepted(pl_module, lambda configured: self._convert(pl_module, configured)).undo)

    def _convert(self, module: pl.LightningModule, configured: Any) -> None:
        self._called = True
        optimizers = configured_optimizers(configured)
        if not optimizers:
            rank_zero_warn("AdamMiniCallback has nothing to convert: configure_optimizers returned no optimizer.", category=AdamMiniWarning)
            return
        known = [o for o in optimizers if o in self._converted]
        new = [o for o in optimizers if not (isinstance(o, AdamMini) and o._made_as is None)]  # else it is the user's own
        names = parameter_names(module)
        # All checks come before the first change: if one fails, the user's optimizers are as they were.
        for optimizer in new:
            check_configured(optimizer, names, self.force)
        for optimizer in new:
            if _IN_TRAINING.get(optimizer, self) is not self:
                raise misconfiguration(
                    f"The configured {type(optimizer).__name__} is in the fit of another AdamMiniCallback, and two cannot decide on its"
                    " blocks. Make an optimizer for each fit, or end the first one."
                )
        if self.stochastic_rounding and new:
            dtypes = {p.dtype for optimizer in new for group in optimizer.param_groups for p in group["params"]}
            if torch.bfloat16 not in dtypes:
                raise misconfiguration(
                    "AdamMiniCallback(stochastic_rounding=True) rounds bfloat16 weights, but the optimizer's are"
                    f" {', '.join(sorted(map(str, dtypes)))}."
                    ' Train with Trainer(precision="bf16-true"), or leave it out.'
                )
        flat_shards = sharded_by_fsdp1(module.trainer, module)
        with as_unsharded(module, flat_shards):
            self.report = self._inspect(module)
        if new:
            self._begin_one_run(module.trainer.strategy, again=bool(known))
            layouts = self._partition(self.report)
            kinds = ", ".join(dict.fromkeys(type(o).__name__ for o in new if not isinstance(o, AdamMini)))
            different = what_differs(new, layouts)
            forced = [what_was_forced(o) for o in new if type(o) not in (Adam, AdamW) and not isinstance(o, AdamMini)]
            with ExitStack() as stack:  # all or none
                for optimizer in new:
                    stack.enter_context(unless_it_fails(optimizer))
                for optimizer in new:
                    named = [(name, p) for p, name in names.items()]
                    convert_optimizer_(optimizer, layouts, named, force=True, flat_shards=flat_shards, **self._optimizer_options())
                    optimizer._blocks.remedy = (
                        "Make its layer before the fit begins if it is to get blocks; where it takes the place of another, call"
                        " optimizer.replace_parameter(old, new, rows=...)."
                    )
            cycle_beta1(configured, new)
            self._converted.update(new)
            for optimizer in new:
                _IN_TRAINING[optimizer] = self
                self._undo.append(functools.partial(_end_training, optimizer))
                if self._one_run is not None:
                    self._undo.append(self._one_run.reduce_learning_rate(optimizer))
            inform(module.trainer, self.report.table(layouts))
            for message in (*forced, *different):
                rank_zero_warn(message, category=AdamMiniWarning)
            if kinds:
                inform(module.trainer, f"AdamMiniCallback: {kinds} keeps one second moment per block from now on (AdamMini)")
        else:
            inform(module.trainer, "AdamMiniCallback: configure_optimizers returned AdamMini itself, which is left as it is")
        load_whole_checkpoints(module.trainer.strategy)

    def _optimizer_options(self) -> dict[str, Any]:
        return {
            "convert_state": self.convert_checkpoints,
            "momentum_dtype": None if self.momentum_dtype is None else NAMES[self.momentum_dtype],
            "stochastic_rounding": self.stochastic_rounding,
        }

    def _inspect(self, module: pl.LightningModule) -> ModelReport:
        heads = self._needs_heads()
        report = inspect_model(module, heads=heads, probe=self.probe is not False, evidence=self._evidence)
        open_ = self.probe or (self.probe is None and heads and is_uncertain(report))
        if self._evidence is None and open_ and self._run_whole(module):
            report = inspect_model(module, heads=heads, evidence=self._evidence)
        # How far it came in its time may differ between ranks, and blocks must not.
        report = module.trainer.strategy.broadcast(report)
        if self._logger is not None:
            self._logger.groups = {p.name: p.role.value for p in report.parameters}
            self._logger.heads = head_layouts(report)
        return report

    def _needs_heads(self) -> bool:
        strategy = make_strategy(self.partition, **(self.options or {}))
        return strategy.needs_heads or bool(self._monitor and self._monitor["heatmap"])

    def _run_whole(self, module: pl.LightningModule) -> bool:
        """Run the module on its example; if it has none, on the first batch, later. Where nobody asked for it, what fails is no error."""
        if module.example_input_array is not None:
            args, kwargs = example_call(module.example_input_array)
            try:
                self._evidence = probe_call(module, lambda: module(*args, **kwargs), (args, kwargs), seconds=SECONDS)
                return True
            except ValueError as error:
                if self.probe:
                    raise
                _log.debug("The module was not probed: %s", error, exc_info=True)
        elif self.probe:
            check_training_step(module)
            self._probe_first_batch = True
        else:
            self._probe_first_batch = why_not_again(module.trainer.strategy, module) is None
        return False

    def _partition(self, report: ModelReport) -> dict[str, BlockLayout]:
        chosen, options = (self.partition, self.options or {}) if self._one_run is None else (self._one_run.strategy, {})

        def partition(strict: bool) -> dict[str, BlockLayout]:
            return partition_model(report, chosen, overrides=self.overrides, strict=strict, **options)

        if not self._probe_first_batch:
            return partition(self.strict)
        with warnings.catch_warnings():  # the first batch will tell
            warnings.simplefilter("ignore", AdamMiniWarning)
            return partition(strict=False)

    def _begin_one_run(self, trained_by: Any, again: bool) -> None:
        strategy = make_strategy(self.partition, **(self.options or {}))
        if not isinstance(strategy, SlimAdamAutoPartition):
            self._one_run = None
            return
        check_measurable(trained_by, f"AdamMiniCallback(partition={self.partition!r})")
        if not again:  # an optimizer that was converted in an earlier fit goes on as it is
            self._one_run = OneRun(strategy)
        if self._one_run is not None and self._resumed is not None:
            self._one_run.load_state_dict(self._resumed)

    @override
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self._optimizers = [o for o in trainer.optimizers if isinstance(o, AdamMini)]  # may be configured anew in the middle
        if self._probe_first_batch:
            self._probe(trainer, pl_module, batch, batch_idx)
        if self._one_run is not None and self.report is not None:
            optimizers = [o for o in self._optimizers if o in self._converted]
            self._one_run.advance(trainer, pl_module, optimizers, self.report, self._partition)

    def _probe(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        assert self.report is not None
        try:
            with nullcontext() if self.probe else redirect_stdout(io.StringIO()):
                evidence = probe_training_step(trainer, pl_module, batch, batch_idx)
        except ValueError as error:
            if self.probe:
                raise
            _log.debug("The first batch was not probed: %s", error, exc_info=True)
            evidence = Evidence()
        self._evidence = trainer.strategy.broadcast(evidence)
        self._probe_first_batch = False
        before, self.report = self.report, self._inspect(pl_module)
        layouts = self._partition(self.report)
        for optimizer in self._optimizers:
            if optimizer in self._converted:
                optimizer.set_layouts(layouts)
        known = before.by_name
        changed = [p for p in self.report.parameters if _what(p) != _what(known[p.name])]
        inform(
            trainer,
            f"AdamMiniCallback: the first batch ran through {len(self._evidence.attentions)} softmax attentions and corrected"
            f" {len(changed)} parameters{': ' * bool(changed)}{', '.join(p.name for p in changed)}",
        )
        if changed:
            inform(trainer, self.report.table(layouts))

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._called:
            raise misconfiguration(
                "AdamMiniCallback could not convert the optimizer because configure_optimizers was replaced after the callback's setup"
                " hook, as when LightningModule.setup assigns it. Define configure_optimizers as a method, or assign it in __init__."
            )
        for optimizer in trainer.optimizers:
            if type(optimizer) in (Adam, AdamW):
                raise misconfiguration(
                    f"AdamMiniCallback did not see the {type(optimizer).__name__} that Lightning trains with, so it is not converted: it"
                    " does not come from the module's configure_optimizers. Return it from there."
                )
        self._optimizers = [o for o in trainer.optimizers if isinstance(o, AdamMini)]
        self._undo += [functools.partial(o.share_work, None) for o in self._optimizers if share_work(trainer.strategy, o)]

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._one_run is not None and self._one_run.rules is None and self._optimizers:
            rank_zero_warn(
                f"AdamMiniCallback: the run ended after {trainer.global_step} steps, all of them Adam's, because slim_adam_auto averages"
                f" second moments at the start of the batch after step {self._one_run.auto.steps}. Train longer, or give a smaller"
                ' options={"steps": ...}.',
                category=AdamMiniWarning,
            )

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._restore()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._undo:
            self._undo.pop()()

    # ---- what it saves --------------------------------------------------------------------------------------------------

    @property
    def optimizer_state_bytes(self) -> tuple[int, int]:
        """Bytes that the converted optimizers' state really holds, and bytes that AdamW's would; (0, 0) before the first step.

        Where the model is sharded, those of this rank.
        """
        ours = sum(state_bytes(optimizer) for optimizer in self._optimizers)
        adamw = sum(adamw_bytes(optimizer) for optimizer in self._optimizers)
        return ours, adamw

    # ---- monitoring and checkpoints -------------------------------------------------------------------------------------

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if not self._optimizers or step == 0 or step == self._last_logged_step:  # while gradients accumulate, nothing changes
            return
        if not self._told_bytes:
            self._told_bytes = True
            ours, adamw = self.optimizer_state_bytes
            if adamw:
                inform(
                    trainer,
                    f"AdamMiniCallback: optimizer state {ours / 1e6:.2f} MB, {100 * ours / adamw:.2f} % of AdamW's {adamw / 1e6:.2f} MB",
                )
        if self._logger is not None and trainer._logger_connector.should_update_logs:
            self._last_logged_step = step
            self._logger.log(trainer, self._optimizers)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._logger is not None and self._optimizers and not trainer.sanity_checking:
            self._logger.log_heatmap(trainer, self._optimizers)

    @override
    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._evidence is not None:
            checkpoint[_EVIDENCE] = self._evidence.to_plain()
        if self._one_run is not None:
            checkpoint[_ONE_RUN] = self._one_run.state_dict()
        # So that the run can be resumed without this callback, by the optimizer that the module configures.
        states = checkpoint.get("optimizer_states", [])
        for i, optimizer in enumerate(trainer.optimizers[: len(states)]):
            if isinstance(optimizer, AdamMini) and is_whole(states[i]):
                states[i] = number_as_in(pl_module, optimizer, to_adamw_state_dict(states[i]))

    @override
    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint.get(_ONE_RUN)
        if _EVIDENCE not in checkpoint:
            return
        evidence = Evidence.from_plain(checkpoint[_EVIDENCE])
        # Lightning calls it before it asks for optimizers, whose saved states are of the blocks that running showed; but where it shards
        # the model itself, afterwards.
        if self._called and self.report is not None and self._converted:
            layouts = self._partition(self.report.corrected(shown(self.report, evidence)))
            present = {name: layout for optimizer in self._converted for name, layout in optimizer.layouts.items()}
            other = {name: layouts[name] for name in present if name in layouts and layouts[name] != present[name]}
            if other:
                name, layout = next(iter(other.items()))
                value = layout.lines if layout.lines is not None else {"dims": list(layout.dims)}
                raise misconfiguration(
                    f"The checkpoint was written with probe=True, which found other blocks for {len(other)} parameters, {name!r} among"
                    f" them, than {type(trainer.strategy).__name__} can find without running the module. Give them as overrides={{{name!r}:"
                    f" {value!r}, ...}}."
                )
        self._evidence = evidence
