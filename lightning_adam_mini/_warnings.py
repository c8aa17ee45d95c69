"""The one class of warning that this package issues."""

from __future__ import annotations


class AdamMiniWarning(UserWarning):
    """A decision of this package that you should look at; the message says what to write to settle it.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("error", AdamMiniWarning)  # be strict: stop instead
        >>> warnings.simplefilter("default", AdamMiniWarning)
    """
