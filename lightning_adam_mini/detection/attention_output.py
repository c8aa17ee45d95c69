"""The projection behind attention, in the attention module or beside it."""

from __future__ import annotations

from functools import lru_cache

from torch import nn

from lightning_adam_mini.detection.attention import find_projections, head_list
from lightning_adam_mini.detection.claims import Claim, Claims
from lightning_adam_mini.detection.known.apply import main_weights
from lightning_adam_mini.detection.layers import is_conv, is_linear, line_axis
from lightning_adam_mini.detection.names import words
from lightning_adam_mini.detection.roles import ATTENTION, Role, Source
from lightning_adam_mini.detection.tree import Slot, Tree
from lightning_adam_mini.lines import parse_lines

# Words of the names that libraries give it. A name proposes; the layer must read as many channels as the heads give.
_WORDS = frozenset(
    {"o", "out", "output", "proj", "projection", "dense", "wo", "final", "to", "c", "linear", "lin", "fc", "add", "added", "post"}
    | {"attention", "attn", "context", "img", "txt", "0", "layer", "self", "merge", "resid", "ca", "sa"}
)


def claim_attention_outputs(tree: Tree, claims: Claims) -> None:
    """Add a claim for the output projection of each attention module that has none yet."""
    for module in claims.attention:
        widths = _widths(tree, claims, module)
        if not widths or _claim_in(tree, claims, module, widths):
            continue
        parent = tree.parents.get(module)
        if parent is None:
            continue
        holder = parent[0]
        if isinstance(holder, nn.ModuleList):  # a module per head: what they give is put together
            queries = next((p for p in find_projections(tree, claims, module) if p.parts == "q"), None)
            outer = None if queries is None else head_list(tree, module, queries.rows)
            if queries is not None and outer is not None:
                _claim_in(tree, claims, outer, {len(holder) * queries.rows}, beside=holder)
        elif len(holder._modules) <= 5:  # BERT's way: `attention.self` holds q, k and v, and `attention.output` the projection
            _claim_in(tree, claims, holder, widths, beside=module)
        else:
            _claim_only(tree, claims, holder, widths, beside=module)


def claim_attention_rest(tree: Tree, claims: Claims) -> None:
    """The other linear layers that attention itself holds: gates, decays, mixing of heads."""
    for module in claims.attention:
        if {"attention", "attn", "mixer"}.isdisjoint(words(type(module).__name__)):
            continue
        linears = {name: tree.own(child).get("weight") for name, child in tree.children(module).items() if is_linear(child)}
        rest = {
            name: slot for name, slot in linears.items() if slot is not None and claims.is_open(slot) and claims.role(slot) is Role.LINEAR
        }
        sizes = {name: (slot.shape[line_axis(slot.layer)], _inputs(slot)) for name, slot in rest.items()}
        for name, slot in rest.items():
            if sizes[name][::-1] in [size for other, size in sizes.items() if other != name]:
                continue  # there and back again: a feed-forward
            why = f"{type(module).__name__}.{name}, neither a projection of queries, keys and values nor their output"
            claims.add(slot, Claim(Source.STRUCTURE, Role.ATTN_OTHER, why, axis=line_axis(slot.layer)))


def _widths(tree: Tree, claims: Claims, module: nn.Module) -> set[int]:
    """How many channels the heads may give together: as many as values have, or one value per query head."""
    query_heads, value_size, widths = 0, 0, set[int]()
    for slot in tree.under(module):
        claim = claims.best(slot)
        if claim is None or claim.role not in ATTENTION or len(slot.shape) < 2:
            continue
        if claim.lines is None:
            widths.add(slot.shape[claim.axis] // (3 if claim.role is Role.QKV else 1))
            continue
        counts = _counts(claim.lines)
        if "v" in counts:
            heads, size = counts["v"]
            value_size = size // heads
            widths.add(size)
        if "q" in counts:
            heads, size = counts["q"]
            query_heads = max(query_heads, heads)
            widths.add(size)
    return widths | {query_heads * value_size} - {0}


@lru_cache(maxsize=1024)
def _counts(lines: str) -> dict[str, tuple[int, int]]:
    """Heads and lines of each role in a line order."""
    found: dict[str, list[int]] = {}
    for role, head in parse_lines(lines).expand():
        found.setdefault(role, []).append(head)
    return {role: (len(set(heads)), len(heads)) for role, heads in found.items()}


def _claim_in(tree: Tree, claims: Claims, module: nn.Module, widths: set[int], beside: nn.Module | None = None) -> bool:
    """Claim it among the children of ``module``; only the first one if attention itself is the child ``beside``."""
    found = False
    read = {_inputs(p.slot) for p in find_projections(tree, claims, module if beside is None else beside)}
    is_shown = any(claims.role(slot) is Role.ATTN_OUT for slot in tree.under(module))
    for name, child in tree.children(module).items():
        if child is beside or not _WORDS.issuperset(words(name)):
            continue
        for slot in main_weights(tree, child):
            if not (is_linear(slot.layer) or is_conv(slot.layer)):
                continue
            if claims.role(slot) is Role.ATTN_OUT:
                found = True
            elif claims.is_open(slot) and _inputs(slot) in widths and (not is_shown or slot.shape[line_axis(slot.layer)] in read):
                why = f"{type(module).__name__}.{name} reads what the heads give"
                claims.add(slot, Claim(Source.STRUCTURE, Role.ATTN_OUT, why, axis=line_axis(slot.layer)))
                found = True
            if found and beside is not None:
                return True
    return found or _claim_only(tree, claims, module, widths, beside)


def _claim_only(tree: Tree, claims: Claims, module: nn.Module, widths: set[int], beside: nn.Module | None) -> bool:
    """Claim a layer with a name of its own, if no other one reads what the heads give and gives what their projections read."""
    read = {_inputs(p.slot) for p in find_projections(tree, claims, module if beside is None else beside)}
    slots = {name: tree.own(child).get("weight") for name, child in tree.children(module).items() if is_linear(child)}
    fits = {name: slot for name, slot in slots.items() if slot is not None and claims.is_open(slot) and _inputs(slot) in widths}
    fits = {name: slot for name, slot in fits.items() if (not read and beside is None) or slot.shape[line_axis(slot.layer)] in read}
    if len(fits) != 1:
        return False
    ((name, slot),) = fits.items()
    why = f"{type(module).__name__}.{name} is the only layer that reads what the heads give"
    claims.add(slot, Claim(Source.STRUCTURE, Role.ATTN_OUT, why, axis=line_axis(slot.layer)))
    return True


def _inputs(slot: Slot) -> int:
    axis = line_axis(slot.layer)
    return slot.shape[1 - axis] * getattr(slot.layer, "groups", 1)
