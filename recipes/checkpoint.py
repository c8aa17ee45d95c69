"""A recipe's model from its checkpoint."""

import inspect
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from recipes.recipe import Recipe

T = TypeVar("T", bound=Recipe)


def load_recipe(model_classes: Sequence[type[T]], file: Path, made_by: str) -> tuple[T, bool]:
    """Load a recipe's model in evaluation mode: with the averaged weights where the checkpoint has them.

    Args:
        model_classes: The classes, of one of which the checkpoint must be.
        file: The checkpoint.
        made_by: The configuration that makes such a checkpoint, for the error that says that this is none.

    Returns:
        The model, and whether its weights are averaged.
    """
    remedy = f"make one with `python -m recipes fit --config {made_by}`, which keeps it as checkpoints/last.ckpt in its log folder"
    if not file.is_file():
        raise MisconfigurationException(f"There is no checkpoint {file}; {remedy}.")
    try:
        checkpoint: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise MisconfigurationException(
            f"{file} cannot be read as a checkpoint, because {str(error).splitlines()[0]}; {remedy}."
        ) from error
    found: dict[str, Any] = checkpoint.get("hyper_parameters", {}) if isinstance(checkpoint, dict) else {}
    arguments = {name: value for name, value in found.items() if not name.startswith("_")}  # LightningCLI adds its own
    model_class = next((one for one in model_classes if arguments and own_arguments(one) <= set(arguments)), None)
    if model_class is None:
        names = " or ".join(one.__name__ for one in model_classes)
        owner = str(found.get("_class_path", "another model")).rpartition(".")[2]
        raise MisconfigurationException(f"{file} is a checkpoint of {owner}, not of this version's {names}; {remedy}.")
    model = model_class(**arguments)
    # Lightning's weight averaging stores the averaged weights as the model's, and those that go on training apart
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval(), "averaging_state" in checkpoint


def own_arguments(model_class: type[Recipe]) -> set[str]:
    """Return the names of a model's arguments, but for those of its optimizer.

    Args:
        model_class: The model's class.
    """
    return {name for name, argument in inspect.signature(model_class).parameters.items() if argument.kind is not argument.VAR_KEYWORD}
