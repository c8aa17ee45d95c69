"""A run of a recipe with AdamW that measures signal-to-noise ratios: the rules and the ratios that it gives."""

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from experiments.compare.digest import recipe_digest
from lightning_adam_mini import SNRMonitor
from lightning_adam_mini.callbacks.snr_figures import named_ratios
from lightning_adam_mini.partition import SlimAdamRules
from recipes.cli import RecipeCLI
from recipes.files import write_atomically


@dataclass(frozen=True)
class Derived:
    """What a measuring run left in its folder.

    Args:
        folder: Its folder, with ``slim_adam_rules.yaml``, ``snr.csv`` and the figures.
        ratios: Averaged ratios by layer type, by what is averaged (fan_out, fan_in, all), and by parameter.
    """

    folder: Path
    ratios: dict[str, dict[str, dict[str, float]]]

    @property
    def rules_file(self) -> Path:
        """The file of its rules."""
        return self.folder / "slim_adam_rules.yaml"

    @property
    def kept(self) -> float:
        """Share of second moments that its rules keep."""
        return SlimAdamRules.load(self.rules_file).provenance["second_moments_kept"]


def recipe_lr(config: Path) -> float:
    """Return the learning rate of a recipe's YAML.

    Args:
        config: The file.
    """
    return float(yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["init_args"]["lr"])


def derive(config: Path, overrides: Sequence[str], lr: float, every: int, folder: Path) -> Derived:
    """Train a recipe with AdamW at a learning rate and measure; a run that has been done is not repeated.

    Args:
        config: The recipe's YAML.
        overrides: Further arguments of ``python -m recipes fit``.
        lr: Peak learning rate.
        every: Steps between measurements.
        folder: Where everything goes.
    """
    args = ["--config", str(config), *overrides]
    made_by = f"{recipe_digest(args)}-lr{lr:g}-every{every}"
    done = folder / "ratios.json"
    if done.is_file():
        stored: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        if stored["made_by"] != made_by:
            raise MisconfigurationException(
                f"{folder} was made with another configuration. Give another --out, or remove it to start again."
            )
        return Derived(folder, stored["ratios"])
    cli = RecipeCLI([*args, "--seed_everything", "0"], run=False, edit=partial(edit_to_measure, lr))
    monitor = SNRMonitor(every=every, dirpath=folder)
    cli.trainer.callbacks.append(monitor)  # pyright: ignore[reportAttributeAccessIssue]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    if monitor.rules is None or monitor.report is None:
        raise MisconfigurationException(f"The run took fewer than {every} steps, so nothing was measured. Give a smaller --every.")
    ratios = named_ratios(monitor.report, monitor.history.averages())
    write_atomically(done, json.dumps({"made_by": made_by, "ratios": ratios}))
    del cli
    gc.collect()  # a trainer refers to itself in circles, and with it a run's weights would stay
    return Derived(folder, ratios)


def edit_to_measure(lr: float, config: Namespace) -> None:
    """Turn the configuration of a recipe into that of a measuring run: AdamW, without logs and files.

    Args:
        lr: Peak learning rate.
        config: The parsed configuration, changed in place.
    """
    config.model.init_args.lr = lr
    trainer = config.trainer
    trainer.callbacks, trainer.logger, trainer.limit_val_batches = [], False, 0
    trainer.enable_checkpointing = trainer.enable_progress_bar = trainer.enable_model_summary = False
