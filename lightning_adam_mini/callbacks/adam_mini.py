"""AdamMiniCallback: inspect, partition, convert, monitor."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch.optim import Adam, AdamW, Optimizer
from typing_extensions import override

from lightning_adam_mini.callbacks.badam import BAdam
from lightning_adam_mini.callbacks.combining import Combining, check_combination
from lightning_adam_mini.callbacks.configured import Intercepted
from lightning_adam_mini.callbacks.deepspeed import adam_minis, allow_offload, bind
from lightning_adam_mini.callbacks.distribution import inform, misconfiguration, warn_on_rank_zero
from lightning_adam_mini.callbacks.monitoring import Monitoring, what_to_monitor
from lightning_adam_mini.callbacks.run import Run
from lightning_adam_mini.callbacks.strategies import check_strategy, is_whole, number_as_in, share_work
from lightning_adam_mini.combine import Combined, Part, read_part
from lightning_adam_mini.combine.combined import combined_in
from lightning_adam_mini.detection import ModelReport
from lightning_adam_mini.detection.evidence import Evidence
from lightning_adam_mini.optim import AdamMini, adamw_bytes, state_bytes, to_adamw_state_dict
from lightning_adam_mini.optim.codecs import MomentumDtype, MomentumName, read_momentum_dtype
from lightning_adam_mini.partition import PartitionStrategy, SlimAdamAutoPartition, make_strategy
from lightning_adam_mini.partition.overrides import check_overrides

_EVIDENCE = "adam_mini_evidence"
_ONE_RUN = "slim_adam"
_OF_A_FIT = ("_run", "log", "log_dict")  # Lightning lends callbacks its module's ``log``


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
        momentum_dtype: What first moments are kept in: ``float32``, ``bfloat16`` (or torch's dtype) or ``8bit``; None for the
            parameters' dtype. A checkpoint written with another is converted.
        stochastic_rounding: Whether bfloat16 weights (``precision="bf16-true"``) are rounded at random, so that small updates are not lost.
        combine: What AdamMini is combined with: ``schedule_free``, ``{"galore": {"rank": 128}}``, ``sophia``, or a
            :class:`~lightning_adam_mini.combine.Part`. The callback switches weights for evaluations and checkpoints, and gives Sophia its
            estimates.
        monitoring: Whether to log effective learning rates, each ``log_every_n_steps`` of the trainer; and what besides, as a
            :class:`~lightning_adam_mini.Monitoring` or a mapping of its arguments (YAML: ``monitoring: {heatmap: true}``).
        **older: ``monitor=False``, ``histograms=True`` and ``heatmap=True``, as older versions spelled ``monitoring``.

    Raises:
        MisconfigurationException: If the trainer has two of these callbacks; if an optimizer has no faithful translation, a ``step`` of
            its own that would hide AdamMini's, parameters that are not the module's, or is in another callback's fit.
            Also if an argument is not valid whatever the model is.
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
        momentum_dtype: MomentumName | MomentumDtype | None = None,
        stochastic_rounding: bool = False,
        combine: str | Mapping[str, Mapping[str, Any] | None] | Part | None = None,
        monitoring: Monitoring | Mapping[str, Any] | bool = True,
        **older: Any,
    ) -> None:
        super().__init__()
        if not isinstance(partition, (str, PartitionStrategy)):
            raise misconfiguration(f"AdamMiniCallback has no partition={partition!r}. Give a name, such as 'auto', or a PartitionStrategy.")
        if not isinstance(overrides, Mapping | None):
            raise misconfiguration(
                f"AdamMiniCallback takes overrides as a dict of blocks by glob, such as {{'*': 'tensor'}}, not {overrides!r}."
            )
        if not isinstance(options, Mapping | None) or not all(isinstance(name, str) for name in options or ()):
            raise misconfiguration(
                f"AdamMiniCallback takes options as a dict by name, such as {{'embedding': 'parameter'}}, not {options!r}."
            )
        switches = {"strict": strict, "probe": probe, "force": force}
        switches |= {"convert_checkpoints": convert_checkpoints, "stochastic_rounding": stochastic_rounding}
        for name, value in switches.items():
            if not isinstance(value, bool) and not (name == "probe" and value is None):
                raise misconfiguration(f"AdamMiniCallback has no {name}={value!r}. Give True or False.")
        try:  # what is wrong whatever the model is, before anything runs
            strategy = make_strategy(partition, **(options or {}))
            check_overrides(overrides or {})
            read_momentum_dtype(momentum_dtype)
            self.combine = read_part(combine)
            if self.combine is not None and isinstance(strategy, SlimAdamAutoPartition):
                raise ValueError(
                    f"slim_adam_auto changes blocks in the middle of a run, which {type(self.combine).__name__} does not follow. Choose"
                    " another partition, or leave combine out."
                )
        except ValueError as error:
            raise misconfiguration(f"AdamMiniCallback: {error}") from None
        self.partition = partition
        self.overrides = overrides
        self.options = options
        self.strict = strict
        self.probe = probe
        self.force = force
        self.convert_checkpoints = convert_checkpoints
        self.momentum_dtype = momentum_dtype
        self.stochastic_rounding = stochastic_rounding
        self.monitoring = what_to_monitor(monitoring, **older)
        self._run = Run(self)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has the settings and nothing of a fit, so that a pickle is small and names no class but this one.
        state = {name: value for name, value in vars(self).items() if name not in _OF_A_FIT}
        return {**state, "monitoring": None if self.monitoring is None else asdict(self.monitoring)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.monitoring = None if state["monitoring"] is None else Monitoring(**state["monitoring"])
        self._run = Run(self)

    @property
    def report(self) -> ModelReport | None:
        """What the module of the last fit is; None before ``configure_optimizers`` was called."""
        return self._run.report

    @property
    def optimizer_state_bytes(self) -> tuple[int, int]:
        """Bytes that the converted optimizers' state really holds, and bytes that AdamW's would; (0, 0) before the first step.

        Where the model is sharded, those of this rank.
        """
        optimizers = self._run.optimizers
        return sum(map(state_bytes, optimizers)), sum(map(adamw_bytes, optimizers))

    # ---- the fit --------------------------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if self._run.undo:
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
        if self.combine is not None:
            check_combination(self.combine, trainer.strategy)
        allow_offload(trainer)
        self._run = run = self._run.next()
        # Converting what the module returns, before Lightning or anything else sees it, works under every strategy.
        run.undo.append(Intercepted(pl_module, lambda configured: run.convert(pl_module, configured)).undo)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        run = self._run
        if not run.called:
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
        bind(trainer)
        run.optimizers = adam_minis(trainer.optimizers)
        run.undo += [functools.partial(o.share_work, None) for o in run.optimizers if share_work(trainer.strategy, o)]
        if combined_in(run.optimizers):
            run.combining = Combining(trainer, pl_module)
            run.undo.append(run.combining.end)
        if run.logger is not None:
            run.logger.begin(trainer)

    @override
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        run = self._run
        run.optimizers = adam_minis(trainer.optimizers)  # may be configured anew in the middle
        if run.probe_first_batch:
            run.probe(trainer, pl_module, batch, batch_idx)
        if run.one_run is not None and run.report is not None:
            optimizers = [o for o in run.optimizers if o in run.converted]
            run.one_run.advance(trainer, pl_module, optimizers, run.report, run.partition)
        if run.combining is not None:
            run.combining.begin_batch(batch, batch_idx)

    @override
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        if self._run.combining is not None:
            self._run.combining.estimate(pl_module, optimizer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        run = self._run
        if run.combining is not None:
            run.combining.evaluate()
        if run.logger is not None:
            run.logger.log_heatmap(trainer, run.optimizers)  # there may be no validation
        if run.one_run is not None and run.one_run.rules is None and run.optimizers:
            warn_on_rank_zero(
                f"AdamMiniCallback: the run ended after {trainer.global_step} steps, all of them Adam's, because slim_adam_auto averages"
                f" second moments at the start of the batch after step {run.one_run.auto.steps}. Train longer, or give a smaller"
                ' options={"steps": ...}.'
            )

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._run.end()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._run.end()

    # ---- monitoring and checkpoints -------------------------------------------------------------------------------------

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        run, step = self._run, trainer.global_step
        if run.combining is not None:
            run.combining.end_batch()
        if not run.optimizers or step == 0 or step == run.last_logged_step:  # while gradients accumulate, nothing changes
            return
        if not run.told_bytes:
            run.told_bytes = True
            ours, adamw = self.optimizer_state_bytes
            if adamw:
                inform(
                    trainer,
                    f"AdamMiniCallback: optimizer state {ours / 1e6:.2f} MB, {100 * ours / adamw:.2f} % of AdamW's {adamw / 1e6:.2f} MB"
                    + " for the block that trains" * any(isinstance(callback, BAdam) for callback in trainer.callbacks),  # pyright: ignore[reportAttributeAccessIssue]
                )
        if run.logger is not None and trainer._logger_connector.should_update_logs:
            run.last_logged_step = step
            run.optimizers = adam_minis(trainer.optimizers)  # with the rates that schedulers have set
            run.logger.log(trainer, run.optimizers)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._run.combining is not None:
            self._run.combining.evaluate()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        run = self._run
        if run.logger is not None and run.optimizers and not trainer.sanity_checking:
            run.logger.log_heatmap(trainer, run.optimizers)

    @override
    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        run = self._run
        if run.evidence is not None:
            checkpoint[_EVIDENCE] = run.evidence.to_plain()
        if run.one_run is not None:
            checkpoint[_ONE_RUN] = run.one_run.state_dict()
        # So that the run can be resumed without this callback, by the optimizer that the module configures.
        states = checkpoint.get("optimizer_states", [])
        for i, optimizer in enumerate(trainer.optimizers[: len(states)]):
            if isinstance(optimizer, AdamMini) and not isinstance(optimizer, Combined) and is_whole(states[i]):
                states[i] = number_as_in(pl_module, optimizer, to_adamw_state_dict(states[i]))

    @override
    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._run.resumed = checkpoint.get(_ONE_RUN)
        if _EVIDENCE in checkpoint:
            self._run.resume(trainer, Evidence.from_plain(checkpoint[_EVIDENCE]))
