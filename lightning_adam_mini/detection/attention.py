"""Attention by structure: projections that a module declares as query, key and value, with heads that fit their rows exactly."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lightning_adam_mini.detection.claims import Claim, Claims, Source
from lightning_adam_mini.detection.heads import declared_head_dims, declared_heads, declared_key_heads
from lightning_adam_mini.detection.known.apply import main_weights, role_of_lines
from lightning_adam_mini.detection.layers import is_conv, is_linear, line_axis
from lightning_adam_mini.detection.names import words
from lightning_adam_mini.detection.roles import Role
from lightning_adam_mini.detection.tree import Slot, Tree

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
    {"proj", "projection", "projections", "to", "lin", "linear", "w", "layer", "in", "add", "added", "dense", "fc", "conv", "map"}
    | {"transform", "weight", "matrix", "pos", "global", "self", "attn", "attention", "cross", "c", "img", "txt", "and", "0", "1", "2", "d"}
)
_OUT = frozenset(
    {"o", "out", "output", "proj", "projection", "dense", "wo", "final", "to", "c", "linear", "lin", "fc", "add", "added", "post"}
    | {"attention", "attn", "context", "img", "txt", "0", "layer", "self"}
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
class _Projection:
    """A weight of an attention module and what its name says."""

    name: str
    parts: str
    slot: Slot

    @property
    def axis(self) -> int:
        return line_axis(self.slot.layer)

    @property
    def rows(self) -> int:
        return self.slot.shape[self.axis]


def claim_attention(tree: Tree, claims: Claims) -> None:
    """Add the claims of all modules that look like attention and are not known."""
    for module in tree.modules.values():
        projections = _projections(tree, claims, module)
        parts = "".join(p.parts for p in projections)
        # A memory network has keys and values, a feed-forward of RWKV too; attention compares queries with keys.
        if not ("q" in parts and "k" in parts):
            continue
        open_ = [p for p in projections if claims.is_open(p.slot)]
        if open_:
            _claim_projections(tree, claims, module, projections, open_)
        claim_output(tree, claims, module, projections)


def _projections(tree: Tree, claims: Claims, module: nn.Module) -> list[_Projection]:
    found: list[_Projection] = []
    for name, child in tree.children(module).items():
        parts = projection_parts(name)
        if not parts:
            continue
        weights = [slot for slot in main_weights(tree, child) if is_linear(slot.layer) or is_conv(slot.layer)]
        if len(weights) == 1:
            found.append(_Projection(name, parts, weights[0]))
    for name, slot in tree.own(module).items():
        parts = projection_parts(name)
        if parts and len(slot.shape) >= 2 and not slot.magnitude and claims.role(slot) is not Role.SPECIAL_TOKEN:
            found.append(_Projection(name, parts, slot))
    return found


def _claim_projections(tree: Tree, claims: Claims, module: nn.Module, projections: list[_Projection], open_: list[_Projection]) -> None:
    kind = type(module).__name__
    queries = next((p for p in projections if p.parts == "q"), None)
    heads = _heads(tree, module, queries) if queries else None
    for p in open_:
        if len(p.parts) > 1:
            why = f"{kind}.{p.name} holds {', '.join(p.parts)}, but their line order is not known"
            claims.add(p.slot, Claim(Source.STRUCTURE, Role.QKV, why, axis=p.axis, guess=True))
            continue
        role = role_of_lines(f"{p.parts}:1")
        lines = _lines(module, p, heads)
        if lines is None:
            why = f"{kind}.{p.name}, but no declared head count fits its {p.rows} lines"
            claims.add(p.slot, Claim(Source.STRUCTURE, role, why, axis=p.axis, guess=p.parts != "v"))
        else:
            why = f"{kind}.{p.name} has {lines[2:].replace('x', ' heads of ')} lines"
            claims.add(p.slot, Claim(Source.STRUCTURE, role, why, axis=p.axis, lines=lines))


def _heads(tree: Tree, module: nn.Module, queries: _Projection) -> tuple[int, int] | None:
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
    return _one_head_each(tree, module, queries)


def _one_head_each(tree: Tree, module: nn.Module, queries: _Projection) -> tuple[int, int] | None:
    """One head, if ``module`` is one of a list of equals whose outputs together are what the next layer reads."""
    parent = tree.parents.get(module)
    if parent is None or not isinstance(parent[0], nn.ModuleList):
        return None
    holder = tree.parents.get(parent[0])
    peers = list(tree.children(parent[0]).values())
    if holder is None or len(peers) < 2 or any(type(peer) is not type(module) for peer in peers):
        return None
    widths = [child.in_features for child in tree.children(holder[0]).values() if isinstance(child, nn.Linear)]
    return (1, queries.rows) if len(peers) * queries.rows in widths else None


def _lines(module: nn.Module, p: _Projection, heads: tuple[int, int] | None) -> str | None:
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


def claim_output(tree: Tree, claims: Claims, module: nn.Module, projections: list[_Projection]) -> None:
    """The projection behind attention: a child with a name for it that reads what the heads give, in ``module`` or beside it."""
    values = next((p for p in projections if p.parts == "v"), None)
    taken = {id(p.slot) for p in projections}
    if _claim_output_in(tree, claims, module, taken, values.rows if values else None):
        return
    # BERT's way: `attention.self` holds q, k, v and `attention.output` beside it the projection.
    parent = tree.parents.get(module)
    if (
        parent is not None
        and len(tree.children(parent[0])) <= 4
        and not any(claims.role(s) is Role.ATTN_OUT for s in tree.under(parent[0]))
    ):
        for slot in tree.under(module):
            taken.add(id(slot))
        _claim_output_in(tree, claims, parent[0], taken, values.rows if values else None)


def _claim_output_in(tree: Tree, claims: Claims, module: nn.Module, taken: set[int], width: int | None) -> bool:
    found = False
    for name, child in tree.children(module).items():
        if not set(words(name)) <= _OUT:
            continue
        for slot in main_weights(tree, child):
            if id(slot) in taken or not (is_linear(slot.layer) or is_conv(slot.layer)):
                continue
            if claims.role(slot) is Role.ATTN_OUT:
                found = True
            elif claims.is_open(slot) and (width is None or _reads(slot, width)):
                claims.add(
                    slot,
                    Claim(Source.STRUCTURE, Role.ATTN_OUT, f"{type(module).__name__}.{name} reads the heads", axis=line_axis(slot.layer)),
                )
                found = True
    return found


def _reads(slot: Slot, width: int) -> bool:
    """Whether the layer has a multiple of ``width`` inputs: with grouped queries the heads give more than one v has."""
    axis = line_axis(slot.layer)
    inputs = slot.shape[1 - axis] * getattr(slot.layer, "groups", 1)
    return inputs % width == 0
