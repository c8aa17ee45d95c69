"""The projection behind attention, in the attention module or beside it."""

from __future__ import annotations

from functools import lru_cache

from torch import nn

from lightning_adam_mini.detection.attention import find_projections, head_list
from lightning_adam_mini.detection.known.apply import main_weights
from lightning_adam_mini.detection.layers import fans, is_bare, is_linear, is_matrix
from lightning_adam_mini.detection.names import words
from lightning_adam_mini.detection.roles import ATTENTION, Role
from lightning_adam_mini.detection.tree import Tree
from lightning_adam_mini.lines import parse_lines

# Words of the names that libraries give it. A name proposes; the layer must read as many channels as the heads give.
_WORDS = frozenset(
    {"o", "out", "output", "proj", "projection", "dense", "wo", "final", "to", "c", "linear", "lin", "fc", "add", "added", "post"}
    | {"attention", "attn", "context", "img", "txt", "0", "layer", "self", "merge", "resid", "ca", "sa"}
)
_PLAIN = frozenset({"to_out", "out_proj", "o_proj"})  # of attention these can be nothing else
_OWN = frozenset({"wo", "w_o", "o_proj", "out_proj", "to_out"})


def claim_attention_outputs(tree: Tree) -> None:
    """Add a claim for the output projection of each attention module that has none yet."""
    for module in tree.attention:
        widths = _widths(tree, module)
        if (widths and _claim_in(tree, module, widths)) or _claim_named(tree, module) or not widths:
            continue
        holder = tree.parent(module)
        if holder is None:
            continue
        if isinstance(holder, nn.ModuleList):  # a module per head: what they give is put together
            queries = next((p for p in find_projections(tree, module) if p.parts == "q"), None)
            outer = None if queries is None else head_list(tree, module, queries.rows)
            if queries is not None and outer is not None:
                _claim_in(tree, outer, {len(holder) * queries.rows}, beside=holder)
        elif len(holder._modules) <= 5:  # BERT's way: `attention.self` holds q, k and v, and `attention.output` the projection
            _claim_in(tree, holder, widths, beside=module)
        else:
            _claim_only(tree, holder, widths, beside=module)


def claim_attention_rest(tree: Tree) -> None:
    """The other linear layers that attention itself holds: of a feed-forward beside it, gates, decays, mixing of heads."""
    for module in tree.attention:
        _claim_down(tree, module)
        if {"attention", "attn", "mixer"}.isdisjoint(words(type(module).__name__)):
            continue
        linears = {name: tree.own(child).get("weight") for name, child in tree.children(module).items() if is_linear(child)}
        rest = {name: slot for name, slot in linears.items() if slot is not None and slot.is_open and slot.role is Role.LINEAR}
        sizes = {name: fans(slot) for name, slot in rest.items()}
        for name, slot in rest.items():
            if sizes[name][::-1] in [size for other, size in sizes.items() if other != name]:  # there and back again: a feed-forward
                first = next(other for other in sizes if sizes[other] in (sizes[name], sizes[name][::-1]))
                if sizes[first][0] > sizes[first][1]:
                    slot.suppose(Role.MLP_UP if name == first else Role.MLP_DOWN, f"feed-forward layers of {type(module).__name__}")
                continue
            why = f"{type(module).__name__}.{name}, neither a projection of queries, keys and values nor their output"
            slot.suppose(Role.ATTN_OTHER, why)


def _claim_down(tree: Tree, module: nn.Module) -> None:
    """What reads the lines of a fused projection that feed no attention, or the half of them that a gate leaves."""
    slots = list(tree.under(module))
    fused = [_counts(slot.claim.lines) for slot in slots if slot.role is Role.QKV and slot.claim.lines is not None]
    rest = {counts["n"][1] // parts for counts in fused if "n" in counts for parts in (1, 2)}
    for slot in slots:
        if is_matrix(slot) and fans(slot)[1] in rest:
            slot.suppose(Role.MLP_DOWN, f"reads what {type(module).__name__} makes beside queries, keys and values")


def _widths(tree: Tree, module: nn.Module) -> set[int]:
    """How many channels the heads may give together: as many as values have, or one value per query head."""
    query_heads, value_size, widths = 0, 0, set[int]()
    for slot in tree.under(module):
        claim = slot.claim
        if claim.role not in ATTENTION or len(slot.shape) < 2:
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


def _claim_in(tree: Tree, module: nn.Module, widths: set[int], beside: nn.Module | None = None) -> bool:
    """Claim it among the children of ``module``; only the first one if attention itself is the child ``beside``."""
    found = False
    read = {fans(p.slot)[1] for p in find_projections(tree, module if beside is None else beside)}
    is_shown = any(slot.role is Role.ATTN_OUT for slot in tree.under(module))
    for name, child in tree.children(module).items():
        if child is beside or not _WORDS.issuperset(words(name)):
            continue
        for slot in main_weights(tree, child):
            if is_bare(slot):
                continue
            if slot.role is Role.ATTN_OUT:
                found = True
            elif slot.is_open and fans(slot)[1] in widths and (not is_shown or fans(slot)[0] in read):
                why = f"{type(module).__name__}.{name} reads what the heads give"
                slot.suppose(Role.ATTN_OUT, why)
                found = True
            if found and beside is not None:
                return True
    return found or _claim_only(tree, module, widths, beside)


def _claim_named(tree: Tree, module: nn.Module) -> bool:
    """Claim a layer that has one of its own names and gives what a projection reads."""
    read = {fans(slot)[1] for slot in tree.under(module) if slot.role in ATTENTION and is_linear(slot.layer)}
    for name, child in tree.children(module).items():
        slots = main_weights(tree, child) if name in _OWN else []
        if len(slots) == 1 and is_matrix(slots[0]) and (fans(slots[0])[0] in read or name in _PLAIN):
            why = "gives what its projections read" if fans(slots[0])[0] in read else "stands behind its heads by its name"
            slots[0].suppose(Role.ATTN_OUT, f"{type(module).__name__}.{name} {why}")
            return True
    return False


def _claim_only(tree: Tree, module: nn.Module, widths: set[int], beside: nn.Module | None) -> bool:
    """Claim a layer with a name of its own, if no other one reads what the heads give and gives what their projections read."""
    read = {fans(p.slot)[1] for p in find_projections(tree, module if beside is None else beside)}
    slots = {name: tree.own(child).get("weight") for name, child in tree.children(module).items() if is_linear(child)}
    fits = {name: slot for name, slot in slots.items() if slot is not None and slot.is_open and fans(slot)[1] in widths}
    fits = {name: slot for name, slot in fits.items() if (not read and beside is None) or fans(slot)[0] in read}
    if len(fits) != 1:
        return False
    ((name, slot),) = fits.items()
    why = f"{type(module).__name__}.{name} is the only layer that reads what the heads give"
    slot.suppose(Role.ATTN_OUT, why)
    return True
