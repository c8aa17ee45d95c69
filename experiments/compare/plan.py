"""What a comparison consists of: its runs, and the edit that turns a recipe's configuration into each of them."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from jsonargparse import Namespace

from experiments.compare.digest import file_digest, recipe_digest
from experiments.compare.optimizers import files_of, put_optimizer

POINTS = (0.25, 0.5, 0.75, 1.0)  # shares of the training steps at which weights are measured


@dataclass(frozen=True)
class Setting:
    """What is searched for every optimizer.

    Args:
        lr: Peak learning rate; none for the recipe's own.
        betas: Decay of the first and the second moment; none for the recipe's own.
    """

    lr: float | None = None
    betas: tuple[float, float] | None = None

    def text(self) -> str:
        """Return it for people.

        Example:
            >>> [Setting().text(), Setting(3e-3).text(), Setting(3e-3, (0.9, 0.95)).text()]
            ['config', '0.003', '0.003, betas 0.9/0.95']
        """
        rate = "config" if self.lr is None else f"{self.lr:g}"
        return rate if self.betas is None else f"{rate}, betas {self.betas_text()}"

    def betas_text(self) -> str:
        """Return the betas as the command line has them."""
        return "/".join(f"{beta:g}" for beta in self.betas or ())


@dataclass(frozen=True)
class Run:
    """One training run of a comparison.

    Args:
        optimizer: Its name; see `experiments.compare.optimizers`.
        seed: Seed of everything random.
        setting: Learning rate and betas.
    """

    optimizer: str
    seed: int
    setting: Setting = Setting()

    @property
    def name(self) -> str:
        """Name of the run, of its log and of its result."""
        rate = "" if self.setting.lr is None else f"_lr{self.setting.lr:g}"
        betas = "" if self.setting.betas is None else f"_betas{self.setting.betas_text().replace('/', '-')}"
        name = re.sub(r"[^\w.=-]", "-", self.optimizer)  # a file's name, which has no slash and not everywhere a colon
        return f"{name}{rate}{betas}_seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A comparison.

    Args:
        config: The recipe's YAML.
        overrides: Further arguments of ``python -m recipes fit``, such as ``--trainer.max_epochs 2``.
        out: Folder of the results.
        optimizers: Names, the first of which the others are compared with.
        seeds: Seeds that every optimizer gets at the setting that is chosen for it.
        settings: What every optimizer is given to choose from on validation.
        tune_seeds: How many of the seeds get every setting, so that it can be chosen.
    """

    config: Path
    overrides: tuple[str, ...]
    out: Path
    optimizers: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: tuple[Setting, ...] = (Setting(),)
    tune_seeds: int | None = None

    def tuning_runs(self) -> list[Run]:
        """Return the runs by which settings are chosen, seed by seed: an interrupted comparison has every optimizer at some seeds."""
        seeds = self.seeds[: self.tune_seeds]
        return [Run(name, seed, setting) for seed, setting, name in itertools.product(seeds, self.settings, self.optimizers)]

    def other_runs(self, chosen: Sequence[Run]) -> list[Run]:
        """Return the runs at the seeds that choose nothing.

        Args:
            chosen: A run of each optimizer, at the setting chosen for it.
        """
        return runs_at(chosen, self.seeds[len(self.seeds[: self.tune_seeds]) :])

    @property
    def args(self) -> list[str]:
        """The recipe's command line."""
        return ["--config", str(self.config), *self.overrides]

    @cached_property
    def recipe(self) -> str:
        """A digest of the recipe, of what it says and not how; see `recipe_digest`."""
        return recipe_digest(self.args)

    def fingerprint(self, optimizer: str) -> str:
        """Return what tells a result apart from one of another recipe, or of other rules.

        Args:
            optimizer: Name of the run's optimizer.
        """
        return "-".join([self.recipe, *map(file_digest, files_of(optimizer))])

    @property
    def results_folder(self) -> Path:
        """The folder of the finished runs' results."""
        return self.out / "runs"

    def result_file(self, run: Run) -> Path:
        """Return the file that holds the result of a run once it has finished.

        Args:
            run: The run.
        """
        return self.results_folder / f"{run.name}.json"


def runs_at(chosen: Sequence[Run], seeds: Sequence[int]) -> list[Run]:
    """Return the runs of each optimizer at some seeds, seed by seed.

    Args:
        chosen: A run of each optimizer, at the setting chosen for it.
        seeds: The seeds.
    """
    return [replace(run, seed=seed) for seed, run in itertools.product(seeds, chosen)]


def edit_for(run: Run, out: Path, config: Namespace) -> None:
    """Turn the configuration of a recipe into that of a run: its optimizer and setting, its log under ``out``.

    The seed is not set here, because LightningCLI seeds before it lets anyone edit: it belongs on the command line.

    Args:
        run: The run.
        out: Folder of the comparison.
        config: The parsed configuration, changed in place.
    """
    if run.setting.lr is not None:
        config.model.init_args.lr = run.setting.lr
    if run.setting.betas is not None:
        config.model.init_args.betas = run.setting.betas
    put_optimizer(run.optimizer, config)
    logger = Namespace(save_dir=str(out), name="logs", version=run.name)
    config.trainer.logger = Namespace(class_path="lightning.pytorch.loggers.TensorBoardLogger", init_args=logger)
    config.trainer.enable_checkpointing = False
    config.trainer.enable_progress_bar = False
    config.trainer.enable_model_summary = False
