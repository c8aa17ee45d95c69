"""SNRMonitor: measures along a run with Adam which second moments could be averaged, and writes SlimAdam's rules."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from lightning_adam_mini.analysis.derive_rules import group_ratios
from lightning_adam_mini.analysis.snr_history import Averaged, SNRHistory, average_snr
from lightning_adam_mini.callbacks.distribution import inform, misconfiguration, warn_on_rank_zero
from lightning_adam_mini.callbacks.loggers import log_numbers
from lightning_adam_mini.callbacks.measure import averaged_matrix, check_has_second_moments, is_sharded, measure, rules_of_run
from lightning_adam_mini.callbacks.snr_figures import draw_depth, draw_trajectories
from lightning_adam_mini.callbacks.strategies import as_unsharded, check_measurable, flat_shards_of
from lightning_adam_mini.callbacks.summary import safe_tag
from lightning_adam_mini.detection import ModelReport, inspect_model
from lightning_adam_mini.optim.shards.flat import FlatShard
from lightning_adam_mini.partition.rules import By, SlimAdamRules


class SNRMonitor(Callback):
    """Measures the signal-to-noise ratio of Adam's second moments, logs it, and writes the rules of SlimAdam that follow from it.

    Put it into a run with torch's AdamW or Adam (or with ``AdamMiniCallback(partition="adam")``) at about a tenth of the learning rate that
    you will train with: at that one ratios are lower, and fewer second moments would be averaged. Use the rules by
    ``AdamMiniCallback(partition="slim_adam", options={"rules": file})``.

    At the end of the fit the folder holds ``slim_adam_rules.yaml``, ``snr.csv`` (every measurement) and, with matplotlib,
    ``snr_trajectories.png`` and ``snr_depth.png``. Loggers get ``weight_snr.<layer type>/<parameter>/<dimensions>`` and, averaged over a
    layer type, ``weight_snr/<layer type>/<dimensions>``. Checkpoints hold the measurements, and a resumed run goes on with them.

    Source: Kalra et al., "When Can You Get Away with Low Memory Adam?" (2025).

    Args:
        every: Steps between measurements. [default: the paper's: each 100 up to step 1000, then each 1000]
        cutoff: What an averaged ratio has to exceed for its dimensions to be averaged.
        by: Whether rules are by ``"layer_type"`` (ratios averaged over depth; good for other widths and depths) or by ``"parameter"``.
        dirpath: Folder of the files. [default: the trainer's log folder; without a logger, its ``default_root_dir``]
        figures: Whether to draw. [default: if matplotlib is installed]
        factored: Whether rules may keep the means of rows and of columns, crossed: the cheapest of rows, columns and both whose ratio is
            above the cut-off. SlimAdam, as published, takes the highest ratio and crosses nothing; the ratio is measured in any case.

    Raises:
        MisconfigurationException: If ``every`` or ``cutoff`` is out of range, the optimizer averages second moments already, or the
            strategy is DeepSpeed's.
        ModuleNotFoundError: If figures are asked for and matplotlib is missing.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[SNRMonitor(every=50)], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        every: int | None = None,
        cutoff: float = 1.0,
        by: By = "layer_type",
        dirpath: str | Path | None = None,
        figures: bool | None = None,
        factored: bool = False,
    ) -> None:
        super().__init__()
        if every is not None and (not isinstance(every, int) or isinstance(every, bool)):
            raise misconfiguration(f"SNRMonitor has no every={every!r}. Give a whole number of steps.")
        if not isinstance(cutoff, (int, float)):
            raise misconfiguration(f"SNRMonitor has no cutoff={cutoff!r}. Give a number, such as the paper's 1.")
        if every is not None and every < 1:
            raise misconfiguration(f"SNRMonitor(every={every}) never measures, because every has to be at least 1.")
        if not cutoff >= 0:
            raise misconfiguration(f"SNRMonitor has no cutoff={cutoff}, because no ratio is negative. Give 0 or more.")
        if by not in ("layer_type", "parameter"):
            raise misconfiguration(f"SNRMonitor has no by={by!r}, because rules are by 'layer_type' or by 'parameter'.")
        if figures and find_spec("matplotlib") is None:
            raise ModuleNotFoundError("SNRMonitor(figures=True) needs matplotlib, which is not installed: run 'pip install matplotlib'.")
        self.every = every
        self.cutoff = cutoff
        self.by: By = by
        self.dirpath = dirpath
        self.figures: bool = find_spec("matplotlib") is not None if figures is None else figures
        self.factored = factored
        self.history: SNRHistory = SNRHistory()
        self.report: ModelReport | None = None
        self.rules: SlimAdamRules | None = None
        self._seen = 0
        self._flat: dict[Tensor, FlatShard] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Measurements as plain data, and nothing of a fit: a pickle names no class but this one.
        state = {name: getattr(self, name) for name in ("every", "cutoff", "by", "dirpath", "figures", "factored")}
        return {**state, "history": self.history.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**{name: value for name, value in state.items() if name != "history"})
        self.history.load_state_dict(state["history"])

    def is_due(self, step: int) -> bool:
        """Whether to measure after ``step`` steps. Override it for a cadence of your own.

        Example:
            >>> [step for step in range(3001) if SNRMonitor().is_due(step)] == [*range(100, 1001, 100), 2000, 3000]
            True
        """
        every = self.every or (100 if step <= 1000 else 1000)
        return step > 0 and step % every == 0

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        check_measurable(trainer.strategy, "SNRMonitor")

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._flat = flat_shards_of(trainer, pl_module)
        with as_unsharded(pl_module, self._flat):
            self.report, self.rules = inspect_model(pl_module), None
        check_has_second_moments(trainer.optimizers)
        averaged = averaged_matrix(trainer.optimizers)
        if averaged is not None and not self.history.steps:  # a run of slim_adam_auto may be resumed after it averaged
            raise misconfiguration(
                f"SNRMonitor cannot measure the second moment of {averaged!r}, because the optimizer keeps its average only. Train with"
                ' AdamW or AdamMiniCallback(partition="adam") to measure.'
            )

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seen = trainer.global_step

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        seen, self._seen = self._seen, trainer.global_step
        # Gradients that accumulate make no step, several optimizers make several a batch.
        if not any(map(self.is_due, range(seen + 1, self._seen + 1))):
            return
        if not (trainer.is_global_zero or is_sharded(trainer.optimizers, self._flat)):
            return
        assert self.report is not None
        found = measure(self.history, self._seen, pl_module, trainer.optimizers, self.report, self._flat)
        if trainer.is_global_zero:
            log_numbers(trainer, self._numbers(self.report, found))

    def _numbers(self, report: ModelReport, found: dict[str, dict[Averaged, float]]) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for group, ratios in group_ratios(report, found).items():
            for dims, members in ratios.items():
                label = dims if dims == "crossed" else "dims_" + "_".join(map(str, dims))
                numbers[f"weight_snr/{safe_tag(group)}/{label}"] = average_snr(members.values())
                numbers.update({f"weight_snr.{safe_tag(group)}/{safe_tag(name)}/{label}": snr for name, snr in members.items()})
        return {tag: number for tag, number in numbers.items() if math.isfinite(number)}

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = trainer.log_dir if self.dirpath is None else self.dirpath  # all ranks take part in this
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        if not self.history.steps or self.report is None:
            warn_on_rank_zero(
                f"SNRMonitor measured nothing in {trainer.global_step} steps, so there are no rules. Give SNRMonitor(every=...) or train"
                " longer."
            )
            return
        self.rules = rules_of_run(self.history, pl_module, trainer.optimizers, self.report, self.cutoff, self.by, factored=self.factored)
        folder = Path(trainer.default_root_dir if folder is None else folder)
        self.rules.save(folder / "slim_adam_rules.yaml")
        (folder / "snr.csv").write_text(self.history.csv_text(), encoding="utf-8")
        if self.figures:
            draw_trajectories(self.history, self.report, self.cutoff).savefig(folder / "snr_trajectories.png")
            draw_depth(self.history, self.report, self.cutoff).savefig(folder / "snr_depth.png")
        inform(trainer, f"SNRMonitor: wrote {folder / 'slim_adam_rules.yaml'}\n\n{self.rules.table()}")

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.history.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history.load_state_dict(state_dict)
