"""Feed-forward blocks: linear layers of one container that read what another gives."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, islice, pairwise

from torch import nn

from lightning_adam_mini.detection.calls import called_names
from lightning_adam_mini.detection.ends import is_repeated
from lightning_adam_mini.detection.known.apply import main_weights
from lightning_adam_mini.detection.layers import fans, is_bare, is_linear, is_matrix, is_pointwise
from lightning_adam_mini.detection.names import words
from lightning_adam_mini.detection.roles import FEED_FORWARD, QUERIES_KEYS, Role
from lightning_adam_mini.detection.tree import Slot, Tree

_NAMED = frozenset({"mlp", "ff", "ffn", "feed", "feedforward", "ffwd", "intermediate", "expert", "swiglu", "glu", "dense", "fc"})
_POSITION = frozenset({"cpb", "position", "pos", "meta"})
_ATTENTION = frozenset({"attention", "attn"})
_LISTS = (nn.ModuleList, nn.ModuleDict)
_TRANSPOSED = frozenset({"transpose", "mT", "T", "t", "permute", "swapaxes", "movedim", "rearrange"})
_GATE = frozenset({"gate", "w1", "g"})


def claim_mlp(tree: Tree) -> None:
    """Add the claims of all feed-forward blocks, innermost first."""
    attends = any(slot.role in QUERIES_KEYS for slot in tree.slots)
    for module in reversed(tree.modules.values()):
        with tree.guarded(module):
            linears = _open_linears(tree, module)
            # The projections of a state space layer are sized like those of a feed-forward layer.
            if len(linears) >= 2 and "A_log" not in tree.own(module) and not _is_chain(module, linears):
                _claim_block(tree, module, linears, attends)
            for layers in _across(tree, module) if attends else ():
                _claim_block(tree, module, layers, attends, across=True)
            _claim_bare(tree, module)
            _claim_token_mix(tree, module)
            _claim_gate_over_places(tree, module)
    _claim_shown(tree)


def _open_linears(tree: Tree, module: nn.Module) -> list[tuple[str, Slot]]:
    """The open linear layers of ``module``, its children or the only ones in its children."""
    found: list[tuple[str, Slot]] = []
    for name, child in tree.children(module).items():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)) or len(child._modules) > 8:
            continue
        weights = main_weights(tree, child)
        if len(weights) > 1:  # MobileBERT's `output` holds its own layer and a bottleneck behind it
            own = [slot for inner in tree.children(child).values() if is_linear(inner) for slot in tree.own(inner).values()]
            weights = [slot for slot in own if slot.attr == "weight"]
        if len(weights) == 1 and is_matrix(weights[0]):
            found.append((name, weights[0]))
    return found


def _across(tree: Tree, module: nn.Module) -> Iterator[list[tuple[str, Slot]]]:
    """What lists of equally many linear layers, side by side in ``module``, hold at the same place."""
    lists: dict[int, list[list[tuple[str, Slot]]]] = {}
    for name, child in tree.children(module).items():
        weights = [tree.own(layer).get("weight") for layer in tree.children(child).values()] if isinstance(child, nn.ModuleList) else []
        found = [(name, slot) for slot in weights if slot is not None and is_matrix(slot)]
        if 1 < len(found) == len(weights) and len({fans(slot) for _, slot in found}) == 1:
            lists.setdefault(len(found), []).append(found)
    for beside in lists.values():
        if len(beside) > 1:
            yield from map(list, zip(*beside, strict=True))


def _is_chain(module: nn.Module, linears: list[tuple[str, Slot]]) -> bool:
    """Whether it is a list of equal layers, one behind the other or side by side: no two of them are the halves of a feed-forward."""
    shapes = {fans(slot) for _, slot in linears}
    is_square = all(outputs == inputs for outputs, inputs in shapes)
    return isinstance(module, (nn.ModuleList, nn.Sequential)) and len(shapes) == 1 and not (is_square and len(linears) == 2)


def _claim_bare(tree: Tree, module: nn.Module) -> None:
    """Two bare matrices of one module, from the width of the features to a larger one and back."""
    bare = [s for s in tree.own(module).values() if s.layer is module and len(s.shape) == 2 and min(s.shape) > 1]
    if len(bare) != 2 or bare[0].shape != bare[1].shape[::-1] or module in tree.attention:
        return
    if any(not slot.is_open or slot.role is not Role.LINEAR for slot in bare):
        return
    used = called_names(type(module))
    axis = 0 if "linear" in used else 1  # F.linear reads (out, in), x @ W (in, out)
    if bare[0].shape[axis] <= bare[0].shape[1 - axis]:
        return
    guess = bool(tree.children(module)) or not _TRANSPOSED.isdisjoint(used) or "einsum" in used
    for slot, role in zip(bare, (Role.MLP_UP, Role.MLP_DOWN), strict=True):
        slot.suppose(role, f"matrices of {type(module).__name__}, wider and back", axis=axis, guess=guess)


def _bare_fans(slot: Slot) -> tuple[int, int]:
    return slot.shape[slot.claim.axis], slot.shape[1 - slot.claim.axis]


def _claim_shown(tree: Tree) -> None:
    """Bare matrices that running showed to feed one another, from the width of the features to a larger one and back."""
    for down, ups in tree.shown.fed.items():
        bare = [s for s in (down, *ups) if is_bare(s) and len(s.shape) == 2 and s.is_open and s.role is Role.LINEAR]
        if len(bare) == 1 + len(ups) in (2, 3):
            (outputs, hidden), sizes = _bare_fans(down), {_bare_fans(up) for up in ups}
            if len(sizes) == 1 and sizes <= {(hidden, outputs), (2 * hidden, outputs)} and hidden > outputs:
                for slot, role in ((down, Role.MLP_DOWN), *((up, Role.MLP_UP) for up in ups)):
                    slot.suppose(role, "matrices that feed one another, wider and back, as running showed")


def _claim_token_mix(tree: Tree, block: nn.Module) -> None:
    """In a block with two feed-forwards and no attention, the one over places: its width is not the one that is normalised."""
    holder = tree.parent(block)
    if not isinstance(holder, (nn.ModuleList, nn.Sequential)) or not is_repeated(tree, next(block.children(), block)):
        return
    if not tree.attention.keys().isdisjoint(block.modules()):
        return
    slots = [slot for slot in tree.under(block) if slot.role in FEED_FORWARD and is_linear(slot.layer)]
    norms = {slot.shape[0] for slot in tree.under(block) if slot.role is Role.NORM and len(slot.shape) == 1}
    outer = {slot: fans(slot)[slot.role is not Role.MLP_DOWN] for slot in slots}
    if len(norms) != 1 or len({*outer.values()}) != 2 or not norms < {*outer.values()}:
        return
    if all(_TRANSPOSED.isdisjoint(called_names(type(inner))) for inner in block.modules()):
        return
    for slot, width in outer.items():
        if width not in norms:
            slot.suppose(Role.TOKEN_MIX, f"feed-forward layers of {type(block).__name__} over {width} places")


def _claim_gate_over_places(tree: Tree, module: nn.Module) -> None:
    """The one layer, square, beside a norm over another number of features, as in gMLP's spatial gate."""
    norms = {child.normalized_shape[-1] for child in tree.children(module).values() if isinstance(child, nn.LayerNorm)}
    held = [slot for slot in tree.under(module) if len(slot.shape) > 1] if len(norms) == 1 and is_repeated(tree, module) else []
    if len(held) != 1:
        return
    outputs, inputs = fans(held[0])
    is_open = is_matrix(held[0]) or (held[0].is_open and is_pointwise(held[0].layer))
    if is_open and outputs == inputs and inputs % (width := norms.pop()):
        held[0].suppose(Role.TOKEN_MIX, f"{type(module).__name__} mixes {inputs} places of {width} features")


def _claim_block(tree: Tree, module: nn.Module, linears: list[tuple[str, Slot]], in_transformer: bool, across: bool = False) -> None:
    kind = type(module).__name__
    named = {*words(kind), *words(tree.name_of(module))}
    if not _POSITION.isdisjoint(named) and fans(linears[0][1])[1] < 5:  # Swin V2 makes position biases from coordinates
        for _, slot in linears:
            slot.suppose(Role.POSITION_EMBEDDING, f"{kind} computes positions")
        return
    if isinstance(module, (nn.ModuleList, nn.Sequential)) and module in tree.parents:
        named |= set(words(type(tree.parents[module][0]).__name__))
    if isinstance(module, nn.ModuleList) and named.isdisjoint(_NAMED):
        return  # not one after another, but side by side
    why = f"feed-forward layers of {kind}"
    is_named = isinstance(module, nn.Sequential) or not named.isdisjoint(_NAMED)
    beside_blocks = not is_repeated(tree, module) and any(isinstance(child, _LISTS) and len(child) for child in module.children())
    if not is_named and not across and in_transformer:
        for (one, a), (two, b) in pairwise(linears):
            is_pair = one[-1:] == "1" and two == f"{one[:-1]}2" and a.is_open and b.is_open
            if is_pair and fans(a) == fans(b)[::-1] and fans(a)[0] > fans(a)[1]:
                a.suppose(Role.MLP_UP, why)
                b.suppose(Role.MLP_DOWN, why)
    if not is_named and any(isinstance(child, (nn.RNNBase, nn.RNNCellBase)) for child in module.children()):
        return  # what makes states, and gates of them
    is_attention = not _ATTENTION.isdisjoint(named) and all(inner not in tree.attention for inner in islice(module.modules(), 1, None))
    if not is_named and not across and (beside_blocks or is_attention):
        return  # what is beside blocks is one end of the network or the other

    for a, b in combinations(linears, 2) if not isinstance(module, nn.Sequential) else ():
        if fans(a[1]) != fans(b[1]):
            continue
        downs = [c for c in linears if c is not a and c is not b and fans(c[1])[1] == fans(a[1])[0]]
        outputs, inputs = fans(a[1])
        is_gated = (is_named and outputs != inputs) or _is_gate(a[0]) or _is_gate(b[0]) or (outputs > inputs and is_repeated(tree, module))
        if len(downs) == 1 and is_gated and _may_feed(tree, downs[0][1], a[1], b[1]):  # one reads both; two would read one each
            down = downs[0]
            gate = b if _is_gate(b[0]) and not _is_gate(a[0]) else a
            up = b if gate is a else a
            gate[1].suppose(Role.MLP_GATE, why)
            up[1].suppose(Role.MLP_UP, why)
            down[1].suppose(Role.MLP_DOWN, why)
            return
    if not is_named and is_repeated(tree, module):
        rest = _beside_attention(tree, module, linears) or _around_a_gate(linears)
        if rest is not None:
            rest[0].suppose(Role.MLP_UP, why)
            rest[1].suppose(Role.MLP_DOWN, why)
            return
    order = [name for name, child in tree.children(module).items() if any(sum(n > 1 for n in slot.shape) > 1 for slot in tree.under(child))]
    for (one, a), (two, b) in pairwise(linears):
        if not is_named and order.index(two) != order.index(one) + 1:
            continue
        (out, into), hidden = fans(a), fans(b)[1]
        if not (a.is_open and b.is_open) or not (is_named or out > into) or not _may_feed(tree, b, a):
            continue
        if out == hidden:
            a.suppose(Role.MLP_UP, why)
            b.suppose(Role.MLP_DOWN, why)
        elif out == 2 * hidden:
            a.suppose(Role.MLP_GATE_UP, why)
            b.suppose(Role.MLP_DOWN, why)


def _may_feed(tree: Tree, reader: Slot, *makers: Slot) -> bool:
    """Whether ``makers`` are among the few that feed ``reader``, as far as running showed."""
    return reader not in tree.shown.unread or set(makers) <= tree.shown.fed.get(reader, set())


def _beside_attention(tree: Tree, module: nn.Module, linears: list[tuple[str, Slot]]) -> tuple[Slot, Slot] | None:
    """The two layers that a block holds beside its attention, one behind the other, even if they are square."""
    attends = any(child in tree.attention for child in tree.children(module).values())
    (_, a), (_, b) = linears[0], linears[-1]
    return (a, b) if attends and len(linears) == 2 and fans(a) == fans(b)[::-1] and module not in tree.attention else None


def _around_a_gate(linears: list[tuple[str, Slot]]) -> tuple[Slot, Slot] | None:
    """Up and down of three layers of which the third, square, makes a gate of what the block gives: the channel mixing of RWKV."""
    squares = [slot for _, slot in linears if fans(slot)[0] == fans(slot)[1]]
    others = [slot for _, slot in linears if slot not in squares]
    if len(squares) != 1 or len(others) != 2 or fans(others[0]) != fans(others[1])[::-1]:
        return None
    (outputs, inputs), width = fans(others[0]), fans(squares[0])[0]
    return (others[0], others[1]) if outputs > inputs == width else None


def _is_gate(name: str) -> bool:
    return not _GATE.isdisjoint(words(name)) or name in ("w1", "wi_0", "linear_1g")
