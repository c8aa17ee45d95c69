"""The LightningCLI of the recipes: ``python -m recipes fit|validate|test|predict --config configs/<x>.yaml``."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from typing_extensions import override

import lightning_adam_mini  # noqa: F401  (a YAML may then say AdamMiniCallback for short)
import recipes.diffusion
import recipes.graph
import recipes.language
import recipes.vision  # noqa: F401
from recipes.files import WholeCheckpointIO
from recipes.recipe import Recipe
from recipes.summary import run_summary


class RecipeCLI(LightningCLI):
    """LightningCLI over the recipes' models and data; after ``fit`` it tests and says what was reached in one line.

    Args:
        args: The command line, without the program's name.
        run: Whether to run the subcommand that the command line names; else the classes are only instantiated.
        edit: Changes the parsed configuration before anything is instantiated from it.
    """

    def __init__(self, args: ArgsType, run: bool = True, edit: Callable[[Namespace], None] | None = None) -> None:
        self.edit = edit
        super().__init__(
            model_class=Recipe,
            datamodule_class=pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            parser_kwargs=parser_texts() if run else {},
            args=args,
            run=run,
        )

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line that was handed in, whatever ``sys.argv`` holds."""
        self.config = parser.parse_args(list(args)) if isinstance(args, Sequence) else parser.parse_object(args or {})

    @override
    def before_instantiate_classes(self) -> None:
        """Apply the edit; let ``fit --ckpt_path last`` go on in the log folder of the run that it resumes."""
        config: Namespace = self.config if self.subcommand is None else self.config[self.subcommand]
        path = config.get("ckpt_path")
        if path is not None and "://" not in str(path) and path not in ("best", "last", "hpc", "registry") and not Path(path).exists():
            raise MisconfigurationException(f"There is no checkpoint {path}. Give --ckpt_path a file that is there, or 'last'.")
        if self.subcommand == "fit" and path == "last":
            continue_latest_version(config)
        if self.edit is not None:
            self.edit(config)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Instantiate the trainer; no checkpoint that it writes is ever there in part."""
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
        return trainer

    @override
    def instantiate_classes(self) -> None:
        """Instantiate the classes; a mistake that one of them finds in its arguments is raised as it was, not as jsonargparse wraps it."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            found = re.search(r"^Errors:\n  - (.*?)\n  - Expected", str(error), flags=re.DOTALL | re.MULTILINE)
            if found is None:
                raise
            raise MisconfigurationException(found[1]) from error

    def after_fit(self) -> None:
        """Test the best checkpoint (the final weights where none was kept as the best) and report on the run in one line."""
        summary = run_summary(self.trainer)
        checkpoint = self.trainer.checkpoint_callback
        best = getattr(checkpoint, "best_model_path", "")
        end_averaging(self.trainer)
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best or None, verbose=False)
        if self.trainer.is_global_zero:
            sys.stdout.write(f"{summary.line(self.model.headline, self.trainer.callback_metrics)}\n")


class ParsedRecipe(RecipeCLI):
    """The configuration that a command line amounts to; nothing is instantiated from it.

    Args:
        args: The command line, without the program's name and a subcommand.
    """

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(list(args), run=False)

    @override
    def instantiate_classes(self) -> None:
        """Instantiate nothing."""


def end_averaging(trainer: pl.Trainer) -> None:
    """Take weight averaging out of a trainer that has fitted: it would measure other weights than those of the model or of a checkpoint.

    Args:
        trainer: The trainer.
    """
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    trainer.callbacks = [callback for callback in callbacks if not isinstance(callback, WeightAveraging)]  # pyright: ignore[reportAttributeAccessIssue]


def parser_texts() -> dict[str, dict[str, Any]]:
    """Return what the help of each subcommand says before it lists the arguments."""
    doing = {
        "fit": "Train a recipe, test it, and say what was reached and how much optimizer memory was saved.",
        "validate": "Measure a checkpoint on the validation set.",
        "test": "Measure a checkpoint on the test set.",
        "predict": "Predict the test set with a checkpoint.",
    }
    texts: dict[str, dict[str, Any]] = {}
    for command, description in doing.items():
        usage = f"python -m recipes {command} --config configs/<recipe>.yaml [--model.ARG VALUE] [--data.ARG VALUE] [--trainer.ARG VALUE]"
        more = "`--model.help ImageClassifier` and `--data.help DigitsData` explain a class; `--print_config` prints what a run would use."
        texts[command] = {"usage": usage, "description": f"{description} {more}"}
    return texts


def continue_latest_version(config: Namespace) -> None:
    """Point the TensorBoardLogger of a configuration at the latest version in its folder, where the last checkpoint lies.

    Args:
        config: The configuration, changed in place; left alone where it names a version itself or there is nothing to resume.
    """
    loggers: Any = config.trainer.logger
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if (
            not isinstance(logger, Namespace)
            or "save_dir" not in logger.get("init_args", {})
            or logger.init_args.get("version") is not None
        ):
            continue
        folder = Path(logger.init_args.save_dir) / str(logger.init_args.get("name"))
        versions = [int(found.name.removeprefix("version_")) for found in folder.glob("version_*") if found.name[8:].isdecimal()]
        if versions:
            logger.init_args.version = max(versions)
