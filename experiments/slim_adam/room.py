"""The room of SlimAdam's figures: a recipe is trained with AdamW and measured, or trained by rules, and each run leaves one JSON file."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from experiments.compare.command import do_each
from experiments.compare.digest import recipe_digest
from experiments.compare.train import measure
from experiments.result import commit, new_result, publish
from experiments.tables import Table
from lightning_adam_mini import AdamMiniCallback, SNRMonitor
from lightning_adam_mini.analysis import SNRHistory, derive_rules
from lightning_adam_mini.callbacks.snr_figures import named_ratios
from lightning_adam_mini.detection import ModelReport
from lightning_adam_mini.detection.report import ParameterReport
from lightning_adam_mini.detection.roles import Architecture, Role, Source
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.partition import SlimAdamRules
from lightning_adam_mini.partition.rules import By
from recipes.cli import RecipeCLI
from recipes.files import write_atomically

K = TypeVar("K")
NEVER = 10**9


@dataclass(frozen=True)
class Asked:
    """What a figure was asked for on the command line.

    Args:
        argv: What followed ``slim_adam``.
        out: Folder of the results; the runs are in ``runs`` in it.
        lrs: Peak learning rates, smallest first.
        seeds: Seeds of the runs.
        steps: Steps of a run.
        jobs: How many runs side by side.
        root: Folder of real data; none for those that are embedded.
        small: Whether it is only to be seen that it runs.
    """

    argv: tuple[str, ...]
    out: Path
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    steps: int
    jobs: int = 1
    root: Path | None = None
    small: bool = False

    @property
    def every(self) -> int:
        """Steps between measurements: twenty a run."""
        return max(1, self.steps // 20)

    def publish(
        self,
        name: str,
        title: str,
        text: str,
        rows: Sequence[Mapping[str, Any]],
        tables: Sequence[Table],
        figures: Mapping[str, Any],
        **facts: Any,
    ) -> None:
        """Write a figure's result, and show it.

        Args:
            name: Name of the files.
            title: What it found out.
            text: What a reader must know of all tables.
            rows: The numbers.
            tables: What is shown.
            figures: By name.
            facts: What else was found.
        """
        told = {"text": text, "rows": rows, "tables": tables, "facts": facts, "seeds": self.seeds, "page": "slim_adam", "place": 10}
        publish(new_result("slim_adam", title, self.argv, **told), self.out, figures, name)

    def train(self, tasks: Mapping[K, Task]) -> dict[K, Run]:
        """Do the runs that have not been done, and return all.

        Args:
            tasks: The runs by whatever tells them apart.
        """
        return train_all(tasks, self.out / "runs", self.jobs)


@dataclass(frozen=True)
class Task:
    """One training run.

    Args:
        label: What its file is called, before its optimizer, learning rate and seed.
        args: The recipe: a command line of ``python -m recipes fit``.
        lr: Peak learning rate.
        seed: Seed of everything random.
        rules: What its second moments are averaged by; none for AdamW.
        every: Steps between measurements of signal-to-noise ratios; 0 for none.
        keep: Whether to write a checkpoint of the final weights beside the JSON file.
    """

    label: str
    args: tuple[str, ...]
    lr: float
    seed: int = 0
    rules: SlimAdamRules | None = None
    every: int = 0
    keep: bool = False

    @property
    def name(self) -> str:
        """Name of the run. Rules are named by what they average, so that equal ones from two sources are one run."""
        optimizer = "adamw" if self.rules is None else f"rules-{rules_digest(self.rules)}"
        return f"{self.label}_{optimizer}_lr{self.lr:g}_seed{self.seed}"

    @property
    def made_by(self) -> str:
        """What tells its result apart from one of another recipe."""
        return f"{_digest(self.args)}-every{self.every}"


@dataclass(frozen=True)
class Run:
    """What a training run left.

    Args:
        lr: Its peak learning rate.
        val: The recipe's headline metric on the validation set, at the end; nan where it diverged.
        test: The same on the test set.
        title: What the metric is called.
        lower: Whether less of it is better.
        parameters: What was trained and measured, as plain data.
        architecture: Of the network.
        measured: The measurements, as plain data; empty where there were none.
    """

    lr: float
    val: float
    test: float
    title: str
    lower: bool
    parameters: Sequence[Mapping[str, Any]] = ()
    architecture: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def report(self) -> ModelReport:
        """The model that was measured."""
        return ModelReport(Architecture(self.architecture), "", tuple(map(_parameter, self.parameters)))

    @cached_property
    def history(self) -> SNRHistory:
        """The measurements along the run."""
        history = SNRHistory()
        values = torch.tensor(self.measured["values"], dtype=torch.float64)
        history.load_state_dict({**self.measured, "values": values})
        return history

    @cached_property
    def ratios(self) -> dict[str, dict[str, dict[str, float]]]:
        """Averaged ratios by layer type, by what is averaged (fan_out, fan_in, all, crossed), and by parameter."""
        return named_ratios(self.report, self.history.averages())

    @property
    def worth(self) -> float:
        """The validation metric, less of which is better; infinite where the run diverged."""
        return (self.val if self.lower else -self.val) if math.isfinite(self.val) else math.inf

    def rules(self, cutoff: float = 1.0, by: By = "layer_type", factored: bool = False) -> SlimAdamRules:
        """Return the rules that its measurements give.

        Args:
            cutoff: What a ratio has to exceed.
            by: By ``"layer_type"`` or by ``"parameter"``.
            factored: Whether rules may keep the means of rows and of columns.
        """
        steps = self.history.steps
        facts = {"architecture": self.architecture, "lr": self.lr, "steps": steps[-1], "measurements": len(steps)}
        rules = derive_rules(self.report, self.history.averages(), cutoff, by, facts, factored)
        rules.provenance["second_moments_kept"] = round(self.kept(rules), 6)
        return rules

    def kept(self, rules: SlimAdamRules) -> float:
        """Return the share of this model's second moments that rules keep.

        Args:
            rules: Of this model or another.
        """
        trained = [p for p in self.report.parameters if p.trainable]
        blocks = sum((rules.layout_for(p) or BlockLayout(p.shape)).num_blocks for p in trained)
        return blocks / sum(math.prod(p.shape) for p in trained)


class Measuring(SNRMonitor):
    """An `SNRMonitor` that writes no files of its own."""

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write nothing."""


def train(task: Task, file: Path, threads: int | None = None) -> Run:
    """Train, unless it has been done, and return what was left.

    Args:
        task: The run.
        file: The JSON file.
        threads: Threads of torch, where several runs share the machine.

    Raises:
        MisconfigurationException: If the file is of another recipe, or a measuring run is too short to measure.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    found = load(task, file)
    if found is not None:
        return found
    cli = RecipeCLI([*task.args, "--seed_everything", str(task.seed)], run=False, edit=partial(edit_to_measure, task.lr))
    monitor = Measuring(every=task.every) if task.every else None
    by_rules = [] if task.rules is None else [AdamMiniCallback("slim_adam", options={"rules": task.rules}, monitoring=False)]
    # Without what LightningCLI adds, which would write config.yaml wherever this was started.
    cli.trainer.callbacks = [*by_rules, *([] if monitor is None else [monitor])]  # pyright: ignore[reportAttributeAccessIssue]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    told: dict[str, Any] = {"made_by": task.made_by, "name": task.name, "lr": task.lr, "commit": commit()}
    if monitor is not None:
        if monitor.report is None or not monitor.history.steps:
            raise MisconfigurationException(f"{task.name} took fewer than {task.every} steps, so nothing was measured. Give more steps.")
        state = monitor.history.state_dict()
        told["measured"] = {**state, "values": state["values"].tolist()}
        told["parameters"] = [asdict(p) for p in monitor.report.parameters]
        told["architecture"] = monitor.report.architecture.value
    if task.keep:
        cli.trainer.save_checkpoint(file.with_suffix(".ckpt"), weights_only=True)
    headline, metrics = cli.model.headline, measure(cli.trainer, cli)
    told |= {split: metrics[f"{split}/{headline.metric}"] for split in ("val", "test")}
    told |= {"title": headline.title, "lower": headline.mode == "min"}
    write_atomically(file, json.dumps(told))
    return _run(told)


def train_all(tasks: Mapping[K, Task], folder: Path, jobs: int = 1) -> dict[K, Run]:
    """Do the runs that have not been done, and return all; what is being done is told.

    Args:
        tasks: The runs by whatever tells them apart; equal ones are done once.
        folder: Folder of the JSON files.
        jobs: How many runs side by side, in processes of their own.
    """
    named = {task.name: task for task in tasks.values()}
    todo = [task for task in named.values() if load(task, folder / f"{task.name}.json") is None]
    done, started = len(named) - len(todo), time.perf_counter()
    if done:
        sys.stderr.write(f"{done} of {len(named)} runs were finished before\n")

    def report(task: Task, finished: int) -> None:
        run = load(task, folder / f"{task.name}.json")
        left = (time.perf_counter() - started) / finished * (len(todo) - finished)
        reached = "" if run is None else f" test {run.title} {run.test:.4f}"
        sys.stderr.write(f"[{done + finished}/{len(named)}] {task.name}:{reached} ({left / 60:.1f} min left)\n")
        sys.stderr.flush()

    do_each(todo, partial(_train_in, folder), jobs, report)
    found = {name: load(task, folder / f"{name}.json") for name, task in named.items()}
    return {key: run for key, task in tasks.items() if (run := found[task.name]) is not None}


def load(task: Task, file: Path) -> Run | None:
    """Return what a run left, or None if it has not been done.

    Args:
        task: The run.
        file: The JSON file.

    Raises:
        MisconfigurationException: If the file is of another recipe.
    """
    if not file.is_file() or (task.keep and not file.with_suffix(".ckpt").is_file()):
        return None
    told = json.loads(file.read_text(encoding="utf-8"))
    if told["made_by"] != task.made_by:
        raise MisconfigurationException(f"{file} was made with another configuration. Give another --out, or remove it to start again.")
    return _run(told)


def rules_digest(rules: SlimAdamRules) -> str:
    """Return a digest of what rules average, whatever ratios they come from.

    Args:
        rules: The rules.
    """
    text = json.dumps([rules.by, sorted((key, rule.dims, rule.crossed) for key, rule in rules.rules.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def recipe_lr(config: Path) -> float:
    """Return the learning rate of a recipe's YAML.

    Args:
        config: The file.
    """
    return float(yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["init_args"]["lr"])


def edit_to_measure(lr: float, config: Namespace) -> None:
    """Turn the configuration of a recipe into that of a run: AdamW at a learning rate, without logs, with nothing validated on its way.

    Args:
        lr: Peak learning rate.
        config: The parsed configuration, changed in place.
    """
    config.model.init_args.lr = lr
    trainer = config.trainer
    trainer.callbacks, trainer.logger = [], False
    trainer.num_sanity_val_steps, trainer.check_val_every_n_epoch = 0, NEVER
    trainer.enable_checkpointing = trainer.enable_progress_bar = trainer.enable_model_summary = False


def _train_in(folder: Path, task: Task, threads: int | None = None) -> None:
    train(task, folder / f"{task.name}.json", threads)


@cache
def _digest(args: tuple[str, ...]) -> str:
    return recipe_digest(args)


def _run(told: Mapping[str, Any]) -> Run:
    return Run(**{name: told[name] for name in Run.__dataclass_fields__ if name in told})


def _parameter(told: Mapping[str, Any]) -> ParameterReport:
    plain = {"shape": tuple(told["shape"]), "aliases": tuple(told["aliases"])}
    kinds = {"role": Role(told["role"]), "owner": Role(told["owner"]), "source": Source(told["source"])}
    return ParameterReport(**{**told, **plain, **kinds})
