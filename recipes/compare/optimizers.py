"""The optimizers of a comparison: how they are named, and what each makes of a recipe's configuration.

A name is an optimizer of `recipes.rivals` (the recipe without the callback), or a partition of `AdamMiniCallback`, if need be with its
momentum_dtype and options after colons: ``adam_mini:8bit``, ``adam_mini:embedding=none``, ``slim_adam:rules=rules.yaml``.
"""

from typing import Any, cast

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

import recipes.partitions  # noqa: F401  (its names are known from here on)
from lightning_adam_mini import AdamMiniCallback, partition_model
from lightning_adam_mini.partition import STRATEGIES
from recipes.rivals import RIVALS, find_rival

CALLBACK = "AdamMiniCallback"
LEFT_OUT = ("ModelCheckpoint", "SampleGrids", "SampleText")  # callbacks that a comparison has no use for


def callback_arguments(name: str) -> dict[str, Any]:
    """Return the arguments of `AdamMiniCallback` that a name stands for.

    Args:
        name: Name of an optimizer that is a partition.

    Example:
        >>> callback_arguments("adam_mini:value=whole:bfloat16")
        {'partition': 'adam_mini', 'momentum_dtype': 'bfloat16', 'options': {'value': 'whole'}}
    """
    partition, *parts = name.split(":")
    arguments: dict[str, Any] = {"partition": partition}
    options: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if equals:
            options[key] = value
        else:
            arguments["momentum_dtype"] = part
    return arguments | ({"options": options} if options else {})


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
    AdamMiniCallback(momentum_dtype=cast(Any, arguments.get("momentum_dtype")))


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
        config.model.init_args.optimizer = name
    else:
        callback = Namespace(class_path=f"lightning_adam_mini.{CALLBACK}", init_args=Namespace()) if found is None else found
        callback.init_args = Namespace({**vars(callback.init_args), **callback_arguments(name)})
        kept.insert(0, callback)
    config.trainer.callbacks = kept
