"""A model in a style that detection was not made for, and what is true of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Style:
    """A model and the truth about it, as its forward code has it.

    Attributes:
        name: Family and variant.
        build: Makes it, small.
        example: Arguments that its forward takes.
        architecture: The acceptable kinds of network.
        roles: Acceptable roles by glob of parameter names; every matrix that matters is matched.
        lines: Line order by glob of parameter names, of all that makes queries and keys for softmax attention. `@1` at the end: columns.
    """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
    architecture: frozenset[str] | set[str]
    roles: Mapping[str, set[str]]
    lines: Mapping[str, str] = field(default_factory=dict)
