"""The optimizers of a comparison: what each makes of a recipe's configuration.

A name is a rival of `experiments.rivals`, without the callback, or a partition of `AdamMiniCallback` (`experiments.rivals.ours`).
"""

from pathlib import Path
from typing import Any, cast

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

import recipes.partitions  # noqa: F401  (its names are known from here on)
from experiments.rivals import RIVALS, find_rival
from experiments.rivals.ours import badam_arguments, callback_arguments
from lightning_adam_mini import AdamMiniCallback, BAdam, partition_model
from lightning_adam_mini.partition import STRATEGIES

CALLBACK = "AdamMiniCallback"
LEFT_OUT = ("ModelCheckpoint", "SampleGrids", "SampleText")  # callbacks that a comparison has no use for


def check_optimizer(name: str) -> None:
    """Refuse a name that no run could be made of.

    Args:
        name: Name of an optimizer.

    Raises:
        MisconfigurationException: If it is neither an optimizer nor a partition with valid options, or its library is not installed.
    """
    if name in RIVALS:
        find_rival(name)
        return
    arguments = callback_arguments(name)
    if arguments["partition"] not in (*STRATEGIES, "auto"):
        known = f"{', '.join(RIVALS)}, or one of the partitions {', '.join(STRATEGIES)}"
        raise MisconfigurationException(f"There is no optimizer {name!r}, because it is none of {known}; name one of them.")
    try:
        partition_model(nn.Linear(1, 1), arguments["partition"], **arguments.get("options", {}))
    except ValueError as error:
        raise MisconfigurationException(f"The optimizer {name!r} cannot be: {error}") from error
    AdamMiniCallback(momentum_dtype=cast(Any, arguments.get("momentum_dtype")), combine=arguments.get("combine"))
    if (settings := badam_arguments(name)) is not None:
        BAdam(**settings)


def put_optimizer(name: str, config: Namespace) -> None:
    """Put an optimizer into the configuration of a recipe.

    Args:
        name: Name of the optimizer.
        config: The parsed configuration, changed in place.
    """
    callbacks: list[Namespace] = config.trainer.callbacks or []
    found = next((callback for callback in callbacks if callback.class_path.endswith(CALLBACK)), None)
    kept = [callback for callback in callbacks if not callback.class_path.endswith((CALLBACK, *LEFT_OUT))]
    if name in RIVALS:
        config.model.init_args.optimizer = name if name == "adamw" else f"experiments.rivals.{name}"
    else:
        callback = Namespace(class_path=f"lightning_adam_mini.{CALLBACK}", init_args=Namespace()) if found is None else found
        callback.init_args = Namespace({**vars(callback.init_args), **callback_arguments(name)})
        kept.insert(0, callback)
        if (settings := badam_arguments(name)) is not None:
            kept.insert(1, Namespace(class_path="lightning_adam_mini.BAdam", init_args=Namespace(**settings)))
    config.trainer.callbacks = kept


def files_of(name: str) -> list[Path]:
    """Return the files that an optimizer's options name, such as its rules.

    Args:
        name: Name of the optimizer.
    """
    options = {} if name in RIVALS else callback_arguments(name).get("options", {})
    return [file for value in options.values() if (file := Path(value)).is_file()]
