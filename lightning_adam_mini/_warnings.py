"""The one class of warning that this package issues, and the one way it does."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import FrameType

_PACKAGE = str(Path(__file__).parent)
_LIBRARIES = (
    "torch",
    "lightning",
    "pytorch_lightning",
    "lightning_fabric",
    "lightning_utilities",
    "jsonargparse",
    "contextlib",
    "functools",
)


class AdamMiniWarning(UserWarning):
    """A decision of this package that you should look at; the message says what to write to settle it.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("error", AdamMiniWarning)  # be strict: stop instead
        >>> warnings.simplefilter("default", AdamMiniWarning)
    """


def warn(message: str) -> None:
    """Warn at the line of the user's that led here: past this package, torch and Lightning.

    Args:
        message: What was decided, why, and what settles it.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn("A guess.")
        >>> caught[0].category.__name__
        'AdamMiniWarning'
    """
    level, frame = 1, sys._getframe()
    outer: FrameType | None = frame
    while outer is not None and _is_inner(outer):
        level, outer = level + 1, outer.f_back
    warnings.warn(message, AdamMiniWarning, stacklevel=level if outer is not None else 2)


def _is_inner(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_PACKAGE) or str(frame.f_globals.get("__name__")).partition(".")[0] in _LIBRARIES
