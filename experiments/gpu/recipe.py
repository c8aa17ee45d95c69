"""A recipe from its YAML file to its test, by LightningCLI."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from experiments.gpu.case import Bench, Case, SkipCaseError
from lightning_adam_mini import AdamMini

NEEDS = ("jsonargparse", "sklearn", "tensorboard", "timm")


def cases(bench: Bench) -> list[Case]:
    """Return the one case.

    Args:
        bench: Where.
    """
    return [Case("vit_digits, one epoch", partial(vit_digits, bench))]


def vit_digits(bench: Bench) -> dict[str, object]:
    """Train the small vision transformer for an epoch, with TensorBoard and a checkpoint, and test it.

    Args:
        bench: Where.
    """
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise SkipCaseError(f"not installed: {', '.join(missing)}")
    from recipes.cli import RecipeCLI

    folder = bench.folder / "recipe"
    config = Path(__file__).parents[2] / "configs" / "vit_digits.yaml"
    trainer = {
        "max_epochs": "1",
        "accelerator": "cpu" if bench.toy else "gpu",
        "devices": "1",
        "logger.init_args.save_dir": str(folder),
        "enable_progress_bar": "false",
    }
    cli = RecipeCLI(["fit", "--config", str(config), *(text for key, value in trainer.items() for text in (f"--trainer.{key}", value))])
    files = [path.suffix for path in folder.rglob("*") if path.is_file()]
    numbers = {name: float(value) for name, value in cli.trainer.callback_metrics.items() if isinstance(value, torch.Tensor)}
    assert ".ckpt" in files, "there is no checkpoint"
    assert isinstance(cli.trainer.optimizers[0], AdamMini), "it was not trained by AdamMini"
    return {"files": len(files), "metrics": numbers}
