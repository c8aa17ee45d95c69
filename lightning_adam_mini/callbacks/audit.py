"""PartitionAudit: asks on the first batch whether the partition follows the Hessian of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import nn
from typing_extensions import override

from lightning_adam_mini.analysis.audit import AuditReport, audit_partition
from lightning_adam_mini.callbacks.adam_mini import AdamMiniCallback
from lightning_adam_mini.callbacks.distribution import inform, misconfiguration
from lightning_adam_mini.callbacks.probe import why_not_again
from lightning_adam_mini.detection import inspect_model
from lightning_adam_mini.partition import PartitionStrategy, partition_model
from lightning_adam_mini.table import count


class PartitionAudit(Callback):
    """Compares, on the first batch of a fit, the blocks of each parameter with the Hessian of the loss and with second moments.

    The blocks are those of the trainer's :class:`AdamMiniCallback`, if it has one. ``training_step`` is run a few times more than training
    does; what it logs then is dropped, and module, optimizer and random numbers stay as they are. The table goes to the log; it and its
    JSON (``partition_audit.txt``, ``partition_audit.json``) go to a folder. Rank zero looks at its own batch, the others wait.

    Args:
        partition: What to audit where the trainer has no ``AdamMiniCallback``. [default: ``"auto"``]
        seconds: About how long it may take.
        columns: Columns of each parameter's Hessian, at most.
        examples: Examples of the batch that are used.
        stop: Whether to end the fit after it.
        dirpath: Folder of the files. [default: the trainer's log folder; without a logger, its ``default_root_dir``]

    Raises:
        MisconfigurationException: If ``seconds``, ``columns`` or ``examples`` is out of range, or ``training_step`` cannot be run once
            more: it steps optimizers itself, takes the batches' iterator, or its layers are sharded or synchronised.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[AdamMiniCallback(), PartitionAudit()], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        partition: str | PartitionStrategy | None = None,
        seconds: float = 120.0,
        columns: int = 32,
        examples: int = 16,
        stop: bool = False,
        dirpath: str | Path | None = None,
    ) -> None:
        super().__init__()
        if not seconds > 0 or columns < 1 or examples < 1:
            raise misconfiguration(f"PartitionAudit takes some seconds, columns and examples; got {seconds=}, {columns=}, {examples=}.")
        self.partition = partition
        self.seconds = seconds
        self.columns = columns
        self.examples = examples
        self.stop = stop
        self.dirpath = dirpath
        self.audit: AuditReport | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "audit": None}

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.audit = None
        why = why_not_again(trainer.strategy, pl_module)
        if why is None and trainer.world_size > 1 and any(isinstance(m, nn.SyncBatchNorm) for m in pl_module.modules()):
            why = "synchronises batch norms, which needs all ranks at once"
        if why is not None:
            raise misconfiguration(
                f"PartitionAudit cannot run training_step once more because it {why}. Audit the module on one device instead:"
                " lightning_adam_mini.analysis.audit_partition(module, loss, layouts)."
            )

    @override
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if self.audit is not None:
            return
        folder = trainer.log_dir if self.dirpath is None else self.dirpath  # all ranks take part in this
        if trainer.is_global_zero:
            self.audit = self._audit(trainer, pl_module, batch)
            folder = Path(trainer.default_root_dir if folder is None else folder)
            table, fast = self.audit.table(), getattr(trainer, "fast_dev_run", False)
            if not fast:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "partition_audit.txt").write_text(f"{table}\n", encoding="utf-8")
                (folder / "partition_audit.json").write_text(json.dumps(self.audit.to_json(), indent=1), encoding="utf-8")
            inform(trainer, f"PartitionAudit:\n\n{table}" if fast else f"PartitionAudit: wrote {folder / 'partition_audit.txt'}\n\n{table}")
        else:
            self.audit = AuditReport((), {}, (), 0.0)
        trainer.strategy.barrier("partition_audit")
        if self.stop:
            trainer.should_stop = True

    def _audit(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> AuditReport:
        training = next((c for c in trainer.callbacks if isinstance(c, AdamMiniCallback)), None)  # type: ignore[attr-defined]
        report = None if training is None else training.report
        report = inspect_model(module) if report is None else report
        if training is None or self.partition is not None:
            layouts = partition_model(report, self.partition or "auto")
        else:
            layouts = partition_model(report, training.partition, training.overrides, **(training.options or {}))
        inform(trainer, f"PartitionAudit: looking at the Hessian of {count(len(layouts), 'parameter')}, for {self.seconds:g} s at most.")
        return audit_partition(
            module,
            batch,
            layouts,
            report=report,
            seconds=self.seconds,
            columns=self.columns,
            examples=self.examples,
            context=trainer.precision_plugin.train_step_context,
        )
