"""Which layout is meant by the name that a parameter has in a wrapped model.

Layouts are by ``0.weight`` where ``named_parameters()`` of the compiled model says ``_orig_mod.0.weight``. But a model may have attributes
of its own that are called like those of wrappers, and the optimizer sees no modules. So no name is read by itself. Names form a tree by
their parts, keys of layouts form another, and one is laid over the other: at each place of either, parts that wrappers may have put in can
be left out, for all names that go through it. What brings most names to a key is right; of such, what leaves out least and outermost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import add
from typing import NamedTuple

# Where wrappers hold what they wrap: torch.compile, data parallelism, FSDP, activation checkpointing, Fabric.
WRAPPED = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")


def match_names(names: Iterable[str], known: Iterable[str], decided: Mapping[str, str] | None = None) -> dict[str, str]:
    """Find the key that each name stands for, one with or without what wrappers put before or into the other.

    Args:
        names: Names of parameters, as many as can be had: they explain each other.
        known: Keys, such as those of layouts.
        decided: What this function returned for parameters that were there before. It holds, and so do the wrappers that it shows.

    Returns:
        The key of each name, no key twice. Names for which there is none are left out, even if they are keys of other names.

    Example:
        >>> match_names(["module._orig_mod.0.weight", "module._orig_mod.1.weight"], ["0.weight", "1.weight"])
        {'module._orig_mod.0.weight': '0.weight', 'module._orig_mod.1.weight': '1.weight'}

        A model that has children ``0`` and ``module`` itself, within a wrapper that adds ``module.``:

        >>> match_names(["module.0.weight", "module.module.0.weight"], ["0.weight", "module.0.weight"])
        {'module.0.weight': '0.weight', 'module.module.0.weight': 'module.0.weight'}

        Layouts of the model while it was compiled:

        >>> match_names(["body.0.weight", "head.weight"], ["body._orig_mod.0.weight", "head.weight"])
        {'body.0.weight': 'body._orig_mod.0.weight', 'head.weight': 'head.weight'}

        A group that is added later:

        >>> match_names(["module.1.weight"], ["0.weight", "1.weight", "module.1.weight"], {"module.0.weight": "0.weight"})
        {'module.1.weight': '1.weight'}
    """
    names, known = list(names), set(known)
    decided = {name: key for name, key in (decided or {}).items() if key in known}
    score, pairs = _Overlay(decided).lay(_Node.tree([*decided, *names]), _Node.tree(known))
    if score.kept < len(decided):  # they fit no longer beside these names: better none than a wrong one
        return {}
    keys = dict(pairs)
    return {name: keys[name] for name in names if name in keys}


@dataclass(eq=False)
class _Node:
    """A place in a tree of names.

    Attributes:
        depth: How far it is from the root.
        name: The name that ends here.
        parts: The places below, by the next part of their names.
    """

    depth: int = 0
    name: str | None = None
    parts: dict[str, _Node] = field(default_factory=dict)

    @classmethod
    def tree(cls, names: Iterable[str]) -> _Node:
        """The root of a tree."""
        root = cls()
        for name in names:
            node = root
            for part in name.split("."):
                node = node.parts.setdefault(part, cls(node.depth + 1))
            node.name = name
        return root

    def variants(self) -> Iterator[tuple[_Node, int, int]]:
        """The place as it is, and with one or more wrappers in a row left out; how many, and how deep these are.

        A wrapper has nothing beside it, unless a user has put names of several models together.
        """
        yield self, 0, 0
        for part in WRAPPED:
            inner = self.parts.get(part)
            if inner is None or (len(self.parts) > 1 and self.depth > 0):
                continue
            beside = {other: node for other, node in self.parts.items() if other != part}
            left_out, depth = 0, 0
            while part in WRAPPED and inner.name is None:  # a parameter may be called so
                left_out, depth = left_out + 1, depth + inner.depth
                yield _Node(self.depth, self.name, {**beside, **inner.parts}), left_out, depth
                if len(inner.parts) != 1:
                    break
                ((part, inner),) = inner.parts.items()


class _Score(NamedTuple):
    """How well two trees fit; the first that differs counts.

    Attributes:
        kept: Names that have the key that was decided before.
        found: Names that have a key.
        of_keys: Parts that are left out of keys, negative. Layouts are made without wrappers' parts, so that names mostly have them.
        of_names: Parts that are left out of names, negative.
        depth: How deep these parts are, negative.
    """

    kept: int = 0
    found: int = 0
    of_keys: int = 0
    of_names: int = 0
    depth: int = 0

    def plus(self, other: _Score) -> _Score:
        return _Score(*map(add, self, other))


class _Overlay:
    """Lays trees of names over trees of keys."""

    def __init__(self, decided: Mapping[str, str]) -> None:
        self._decided = decided
        self._taken = set(decided.values())
        self._best: dict[tuple[_Node, _Node], tuple[_Score, list[tuple[str, str]]]] = {}

    def lay(self, names: _Node, keys: _Node) -> tuple[_Score, list[tuple[str, str]]]:
        """The best score, and the names with their keys."""
        if (names, keys) not in self._best:
            laid = []
            for name_variant, of_names, depth in names.variants():
                for key_variant, of_keys, more_depth in keys.variants():
                    score, pairs = self._lay_as_they_are(name_variant, key_variant)
                    laid.append((score.plus(_Score(of_keys=-of_keys, of_names=-of_names, depth=-depth - more_depth)), pairs))
            self._best[names, keys] = max(laid, key=lambda found: found[0])
        return self._best[names, keys]

    def _lay_as_they_are(self, names: _Node, keys: _Node) -> tuple[_Score, list[tuple[str, str]]]:
        score, pairs = self._meet(names.name, keys.name)
        for part, inner in names.parts.items():
            if part in keys.parts:
                more, found = self.lay(inner, keys.parts[part])
                score = score.plus(more)
                pairs += found
        return score, pairs

    def _meet(self, name: str | None, key: str | None) -> tuple[_Score, list[tuple[str, str]]]:
        if name is None or key is None:
            return _Score(), []
        if name in self._decided or key in self._taken:
            return (_Score(kept=1, found=1), [(name, key)]) if self._decided.get(name) == key else (_Score(), [])
        return _Score(found=1), [(name, key)]
