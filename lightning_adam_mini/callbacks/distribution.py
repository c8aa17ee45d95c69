"""What is Lightning's: ``lightning.pytorch`` and ``pytorch_lightning`` are two packages of the same classes, and a trainer is of either.

This package is written against the first and never imports the second, which may be missing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_adam_mini._warnings import warn

_DISTRIBUTIONS = ("lightning.pytorch", "pytorch_lightning")


def is_lightnings(thing: Any, *names: str) -> bool:
    """Whether something is an instance of one of Lightning's classes, by their names and of either distribution.

    Args:
        thing: A strategy, a logger or whatever else.
        names: Names of classes.

    Example:
        >>> from lightning.pytorch.strategies import DDPStrategy
        >>> is_lightnings(DDPStrategy(), "DDPStrategy"), is_lightnings(DDPStrategy(), "FSDPStrategy", "DeepSpeedStrategy")
        (True, False)
    """
    return any(kind.__name__ in names and _distribution(kind) is not None for kind in type(thing).__mro__)


def inform(trainer: Any, message: str) -> None:
    """Log a message on rank zero, through the logger of the trainer's distribution.

    Lightning's ``rank_zero_info`` goes through that of the distribution that was imported last.
    """
    distribution = next(filter(None, map(_distribution, type(trainer).__mro__)), _DISTRIBUTIONS[0])
    _info(logging.getLogger(f"{distribution}.utilities.rank_zero"), message)


@rank_zero_only
def warn_on_rank_zero(message: str) -> None:
    """Warn at the user's line, on rank zero."""
    warn(message)


def misconfiguration(message: str) -> MisconfigurationException:
    """The error for users' mistakes, which is that of each distribution that is imported: whichever trainer it is, its user catches it.

    Example:
        >>> raise misconfiguration("The trainer has two of them.")
        Traceback (most recent call last):
        lightning.fabric.utilities.exceptions.MisconfigurationException: The trainer has two of them.
    """
    other = sys.modules.get(f"{_DISTRIBUTIONS[1]}.utilities.exceptions")
    return MisconfigurationException(message) if other is None else _of_both(other.MisconfigurationException)(message)


@lru_cache
def _of_both(other: type[Exception]) -> Callable[[str], MisconfigurationException]:
    def reduce(error: Exception) -> tuple[Any, ...]:  # no module has the class, so that pickle would not find it
        return misconfiguration, error.args

    names = {"__module__": MisconfigurationException.__module__, "__reduce__": reduce}
    return type(MisconfigurationException.__name__, (MisconfigurationException, other), names)


def _distribution(kind: type) -> str | None:
    return next((name for name in _DISTRIBUTIONS if f"{kind.__module__}.".startswith(f"{name}.")), None)


@rank_zero_only
def _info(logger: logging.Logger, message: str) -> None:
    logger.info(message)
