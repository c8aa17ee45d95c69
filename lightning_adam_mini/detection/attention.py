"""Attention by structure: projections that a module declares as query, key and value, with heads that fit their rows exactly."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lightning_adam_mini.detection.heads import declared_head_dims, declared_heads, declared_key_heads
from lightning_adam_mini.detection.known.apply import main_weights
from lightning_adam_mini.detection.layers import is_conv, is_linear, line_axis
from lightning_adam_mini.detection.names import ATTENTION_WORDS, words
from lightning_adam_mini.detection.registry import is_conventional
from lightning_adam_mini.detection.roles import Role, Source
from lightning_adam_mini.detection.shown import role_of_lines
from lightning_adam_mini.detection.tree import Claim, Slot, Tree

_PARTS = {
    **dict.fromkeys(("q", "query", "queries", "wq"), "q"),
    **dict.fromkeys(("k", "key", "keys", "wk"), "k"),
    **dict.fromkeys(("v", "value", "values", "wv"), "v"),
    "qkv": "qkv",
    "wqkv": "qkv",
    "kqv": "kqv",
    "kv": "kv",
    "wkv": "kv",
    "qk": "qk",
}
# Words that may stand beside them in the name of a projection. Any other word means something else: `key_padding`, `q_norm`.
_BESIDE = frozenset(
    {"proj", "projection", "projections", "projector", "to", "lin", "linear", "w", "layer", "in", "add", "added", "dense", "fc"}
    | {"conv", "map", "transform", "weight", "matrix", "pos", "global", "self", "attn", "attention", "cross", "c", "img", "txt"}
    | {"and", "0", "1", "2", "d", "head", "heads", "ca", "sa", "content", "text", "vision", "image", "src", "tgt", "embed"}
    | {"states", "sine", "project", "layout", "e", "protein", "structure", "msa"}
)
# A projection of positions that queries are compared with, as in Transformer-XL: keys.
_POSITIONAL = (
    frozenset({"pos", "position", "relative"}),
    frozenset({"pos", "position", "relative", "k", "linear", "lin", "proj", "projection"}),
)


def projection_parts(name: str) -> str:
    """Which of q, k and v a child called ``name`` is by its words, in order; empty if it is none.

    Example:
        >>> [projection_parts(n) for n in ("q_proj", "to_kv", "query_key_value", "q_norm", "network", "key_padding")]
        ['q', 'kv', 'qkv', '', '', '']
    """
    parts = ""
    for word in words(name):
        if word in _PARTS:
            parts += _PARTS[word]
        elif word not in _BESIDE:
            return ""
    return parts


@dataclass(frozen=True)
class Projection:
    """A weight of an attention module and what its name says."""

    name: str
    parts: str
    slot: Slot

    @property
    def axis(self) -> int:
        """The dimension of its output lines."""
        return line_axis(self.slot.layer)

    @property
    def rows(self) -> int:
        """The number of its output lines."""
        return self.slot.shape[self.axis]


def claim_attention(tree: Tree, heads: bool = True) -> None:
    """Add the claims of all modules that look like attention and are not known.

    Args:
        tree: The model.
        heads: Whether their heads are asked for.
    """
    for module in tree.modules.values():
        projections = find_projections(tree, module)
        parts = "".join(p.parts for p in projections)
        # A memory network has keys and values, a feed-forward of RWKV too; attention compares queries with keys.
        # One of them may be missing: a learned query, keys of another layer.
        is_named = not ATTENTION_WORDS.isdisjoint(words(type(module).__name__)) and bool(declared_heads(module))
        if not ("q" in parts and "k" in parts) and not (is_named and ("q" in parts or "k" in parts)):
            continue
        tree.attention.setdefault(module)
        open_ = [p for p in projections if p.slot.is_open]
        if open_:
            _claim_projections(tree, module, projections, open_, heads)


def find_projections(tree: Tree, module: nn.Module) -> list[Projection]:
    """The children and parameters of ``module`` that are called a query, key or value projection."""
    found: list[Projection] = []
    positional: list[Projection] = []
    for name, child in tree.children(module).items():
        parts = projection_parts(name)
        is_positional = parts in ("", "k") and not _POSITIONAL[0].isdisjoint(words(name)) and _POSITIONAL[1].issuperset(words(name))
        if not parts and not is_positional:
            continue
        weights = [slot for slot in main_weights(tree, child) if is_linear(slot.layer) or is_conv(slot.layer)]
        if len(weights) == 1:
            (positional if is_positional else found).append(Projection(name, parts or "k", weights[0]))
    for name, slot in tree.own(module).items():
        parts = projection_parts(name)
        if parts and len(slot.shape) >= 2 and not slot.magnitude and "bias" not in name and slot.role is not Role.SPECIAL_TOKEN:
            found.append(Projection(name, parts, slot))
    return found + positional if found else []


def _claim_projections(tree: Tree, module: nn.Module, projections: list[Projection], open_: list[Projection], with_heads: bool) -> None:
    kind = type(module).__name__
    queries = next((p for p in projections if p.parts == "q"), None) or next((p for p in projections if p.parts == "k"), None)
    heads = find_heads(tree, module, queries) if queries and with_heads else None
    is_convention = is_conventional(type(module))
    for p in open_:
        role, lines = role_of_lines("|".join(f"{part}:1" for part in p.parts)), None
        why = f"{kind}.{p.name} holds {', '.join(p.parts)}"
        unsure = with_heads and p.parts != "v"
        if len(p.parts) > 1:
            why += ", but their line order is not known" * with_heads
        elif (lines := _lines(module, p, heads)) is not None:
            # That a number divides another proves nothing: in which order the lines are heads, only the forward says.
            why = f"{kind}.{p.name} has {lines[2:].replace('x', ' heads of ')} lines" + " if its heads lie in turn" * (not is_convention)
            unsure = unsure and not is_convention
        elif with_heads:
            why = f"{kind}.{p.name}, but no declared head count fits its {p.rows} lines"
        p.slot.add(Claim(Source.STRUCTURE, role, why, axis=p.axis, lines=lines, guess=unsure))


def find_heads(tree: Tree, module: nn.Module, queries: Projection) -> tuple[int, int] | None:
    """Query heads and their size, if what the module declares fits the rows of the query projection."""
    counts, sizes = declared_heads(module), declared_head_dims(module)
    for count in counts:
        for size in sizes:
            if count * size == queries.rows:
                return count, size
    if counts and not sizes and queries.rows % counts[0] == 0:
        return counts[0], queries.rows // counts[0]
    if sizes and not counts and queries.rows % sizes[0] == 0:
        return queries.rows // sizes[0], sizes[0]
    return (1, queries.rows) if head_list(tree, module, queries.rows) else None


def head_list(tree: Tree, module: nn.Module, rows: int) -> nn.Module | None:
    """The module that holds ``module`` in a list of equals, one a head, whose outputs together are what its next layer reads."""
    _, beside, holder, *_ = (*tree.around(module), None, None)
    peers = list(tree.children(beside).values()) if isinstance(beside, nn.ModuleList) else []
    if holder is None or len(peers) < 2 or any(type(peer) is not type(module) for peer in peers):
        return None
    widths = [child.in_features for child in tree.children(holder).values() if isinstance(child, nn.Linear)]
    return holder if len(peers) * rows in widths else None


def _lines(module: nn.Module, p: Projection, heads: tuple[int, int] | None) -> str | None:
    if heads is None:
        return None
    count, size = heads
    if p.rows == count * size:
        return f"{p.parts}:{count}x{size}"
    if p.parts == "q":
        return None
    for groups in declared_key_heads(module):
        if p.rows == groups * size:
            return f"{p.parts}:{groups}x{size}"
    if p.rows % size == 0 and count % (p.rows // size) == 0:
        return f"{p.parts}:{p.rows // size}x{size}"  # grouped queries: the rows say how many key heads there are
    if p.parts == "v" and p.rows % count == 0:
        return f"v:{count}x{p.rows // count}"
    return None
