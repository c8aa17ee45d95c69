"""SlimAdam in one run: Adam while signal-to-noise ratios are measured, then their rules in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer

from lightning_adam_mini.analysis.snr_history import SNRHistory
from lightning_adam_mini.callbacks.distribution import inform
from lightning_adam_mini.callbacks.loggers import log_numbers, loggers_of
from lightning_adam_mini.callbacks.measure import measure, rules_of_run
from lightning_adam_mini.callbacks.strategies import flat_shards_of
from lightning_adam_mini.detection import ModelReport
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim import AdamMini, state_bytes
from lightning_adam_mini.partition import PartitionStrategy, SlimAdamAutoPartition, SlimAdamPartition, SlimAdamRules


class OneRun:
    """What ``AdamMiniCallback(partition="slim_adam_auto")`` does besides converting.

    All of it happens at the start of a batch, before its step: a checkpoint written between two steps, by whatever callback, is resumed as
    if nothing had happened.

    Args:
        strategy: How long to measure, and how to derive rules.
    """

    def __init__(self, strategy: SlimAdamAutoPartition) -> None:
        self.auto = strategy
        self.rules: SlimAdamRules | None = None
        self.history: SNRHistory = SNRHistory()

    @property
    def strategy(self) -> PartitionStrategy:
        """The partition of the moment: Adam's, or that of the rules."""
        return self.auto if self.rules is None else SlimAdamPartition(rules=self.rules)

    def reduce_learning_rate(self, optimizer: Optimizer) -> Callable[[], None]:
        """Make an optimizer step with a share of its learning rate until there are rules. Schedulers and loggers see the whole.

        Returns:
            A function that undoes it.
        """
        whole: list[Any] = []

        def before(*_: Any) -> None:
            if self.rules is None and self.auto.lr_scale != 1:
                whole[:] = [group["lr"] for group in optimizer.param_groups]
                for group in optimizer.param_groups:
                    group["lr"] = group["lr"] * self.auto.lr_scale

        def after(*_: Any) -> None:
            for group, lr in zip(optimizer.param_groups, whole, strict=False):
                group["lr"] = lr
            whole.clear()

        handles = optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)

        def undo() -> None:
            for handle in handles:
                handle.remove()

        return undo

    def advance(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        optimizers: Sequence[AdamMini],
        report: ModelReport,
        partition: Callable[[ModelReport], Mapping[str, BlockLayout]],
    ) -> None:
        """Measure if it is time to, and average second moments in place once the last measurement is made.

        Args:
            trainer: The trainer, before a batch.
            module: Its module.
            optimizers: The optimizers that were converted.
            report: The module's report.
            partition: Gives the layouts by the strategy of the moment.

        Raises:
            ValueError: If nothing could be measured.
        """
        auto, step = self.auto, trainer.global_step
        last = self.history.steps[-1] if self.history.steps else 0
        due = step // auto.measures_every > last // auto.measures_every or step >= auto.steps
        if self.rules is not None or step == last or not due:
            return
        measure(self.history, step, module, optimizers, report, flat_shards_of(trainer, module))
        if step < auto.steps:
            return
        rules = rules_of_run(self.history, module, optimizers, report, auto.cutoff, auto.by, auto.lr_scale, auto.factored)
        # Ranks have the same second moments but for rounding, by which a ratio could fall on either side of the cut-off.
        self.rules = SlimAdamRules.from_plain(trainer.strategy.broadcast(rules.to_plain()))
        self.history = SNRHistory()
        before = sum(map(state_bytes, optimizers))
        layouts = partition(report)
        for optimizer in optimizers:
            optimizer.set_layouts(layouts)
        after = sum(map(state_bytes, optimizers))
        inform(
            trainer,
            f"AdamMiniCallback: after {step} steps of Adam, second moments are averaged by what was measured: optimizer state"
            f" {before / 1e6:.2f} MB before, {after / 1e6:.2f} MB from now on\n\n{self.rules.table()}\n\n{report.table(layouts)}",
        )
        numbers = {"averaged_at_step": step, "bytes_before": before, "bytes_after": after}
        log_numbers(trainer, {f"weight_state/{name}": number for name, number in numbers.items()})
        folder = trainer.log_dir  # all ranks take part in this
        if folder is not None and trainer.is_global_zero and loggers_of(trainer):
            self.rules.save(Path(folder) / "slim_adam_rules.yaml")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: the rules, or the measurements made so far."""
        return {"rules": None if self.rules is None else self.rules.to_plain(), "history": self.history.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.rules = None if state["rules"] is None else SlimAdamRules.from_plain(state["rules"])
        self.history.load_state_dict(state["history"])
