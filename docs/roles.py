"""Reads docstrings for the site: roles (``:class:`~package.Name```) as links, or as code where no page has the name; examples as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([\w.]+)`")


def to_markdown(text: str) -> str:
    """Return a docstring whose roles are Markdown and whose examples are a section.

    Args:
        text: The docstring.
    """

    def link(match: re.Match[str]) -> str:
        short, path = match.groups()
        shown = path.rpartition(".")[2] if short else path.removeprefix("lightning_adam_mini.")
        # autorefs leaves an optional reference as it is, code, where no page has it
        return f'<autoref identifier="{path}" optional>`{shown}`</autoref>' if path.startswith("lightning_adam_mini.") else f"`{shown}`"

    # griffe knows the plural as a section of examples, and takes the singular for an admonition
    return _ROLE.sub(link, text).replace("Example:\n", "Examples:\n")


class Roles(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring.

        Args:
            obj: What has it.
        """
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
