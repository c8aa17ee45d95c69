"""The blocks of BAdam: what trains together, one after the other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

_NUMBERED = re.compile(r"((?:.*?\.)?\d+)\.")


def find_blocks(names: Sequence[str]) -> dict[str, list[str]]:
    """Cut a model into the blocks that train one after the other: its numbered layers, and what stands before, between and after them.

    Args:
        names: Names of the parameters, in the model's order.

    Returns:
        Names of the parameters by block, in the model's order; of a model without numbered layers its first modules that are several.

    Example:
        >>> names = ["embed.weight", "layers.0.q.weight", "layers.0.mlp.weight", "layers.1.q.weight", "norm.weight", "head.weight"]
        >>> list(find_blocks(names))
        ['embed', 'layers.0', 'layers.1', 'norm, head']
    """

    def layer(name: str) -> str | None:
        found = _NUMBERED.match(name)
        return None if found is None else found[1]

    if all(layer(name) is None for name in names):
        paths = [name.split(".") for name in names]
        deepest = min((len(path) for path in paths), default=0)
        depth = next((d for d in range(deepest) if len({path[d] for path in paths}) > 1), 0) + 1
        blocks: dict[str, list[str]] = {}
        for name, path in zip(names, paths, strict=True):
            blocks.setdefault(".".join(path[:depth]), []).append(name)
        return blocks
    blocks = {}
    for key, run in groupby(names, key=layer):
        found = list(run)
        # A module's children may be listed apart, as shared ones are.
        blocks.setdefault(key or ", ".join(dict.fromkeys(name.rpartition(".")[0] or name for name in found)), []).extend(found)
    return blocks
