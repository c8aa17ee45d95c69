"""Feed-forward blocks: linear layers of one container that read what another gives."""

from __future__ import annotations

from itertools import combinations, pairwise

from torch import nn

from lightning_adam_mini.detection.claims import Claim, Claims
from lightning_adam_mini.detection.ends import is_repeated
from lightning_adam_mini.detection.known.apply import main_weights
from lightning_adam_mini.detection.layers import fans, is_linear, line_axis
from lightning_adam_mini.detection.names import words
from lightning_adam_mini.detection.roles import Role, Source
from lightning_adam_mini.detection.tree import Slot, Tree

_NAMED = frozenset({"mlp", "ff", "ffn", "feed", "feedforward", "ffwd", "intermediate", "expert", "swiglu", "glu", "dense", "fc"})
_POSITION = frozenset({"cpb", "position", "pos", "meta"})
_ATTENTION = frozenset({"attention", "attn"})
_LISTS = (nn.ModuleList, nn.ModuleDict)
_GATE = frozenset({"gate", "w1", "g"})


def claim_mlp(tree: Tree, claims: Claims) -> None:
    """Add the claims of all feed-forward blocks, innermost first."""
    for module in reversed(tree.modules.values()):
        with claims.guarded(tree, module):
            linears = _open_linears(tree, claims, module)
            # The projections of a state space layer are sized like those of a feed-forward layer.
            if len(linears) >= 2 and "A_log" not in tree.own(module):
                _claim_block(tree, claims, module, linears)


def _open_linears(tree: Tree, claims: Claims, module: nn.Module) -> list[tuple[str, Slot]]:
    """The open linear layers of ``module``, its children or the only ones in its children."""
    found: list[tuple[str, Slot]] = []
    for name, child in tree.children(module).items():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)) or len(child._modules) > 8:
            continue
        weights = main_weights(tree, child)
        if len(weights) > 1:  # MobileBERT's `output` holds its own layer and a bottleneck behind it
            own = [slot for inner in tree.children(child).values() if is_linear(inner) for slot in tree.own(inner).values()]
            weights = [slot for slot in own if slot.attr == "weight"]
        if len(weights) == 1 and is_linear(weights[0].layer) and claims.is_open(weights[0]) and claims.role(weights[0]) is Role.LINEAR:
            found.append((name, weights[0]))
    return found


def _claim_block(tree: Tree, claims: Claims, module: nn.Module, linears: list[tuple[str, Slot]]) -> None:
    kind = type(module).__name__
    named = set(words(kind)) | (set(words(tree.parents[module][1])) if module in tree.parents else set())
    if not _POSITION.isdisjoint(named) and fans(linears[0][1])[1] < 5:  # Swin V2 makes position biases from coordinates
        for _, slot in linears:
            claims.add(slot, Claim(Source.STRUCTURE, Role.POSITION_EMBEDDING, f"{kind} computes positions", axis=line_axis(slot.layer)))
        return
    if isinstance(module, (nn.ModuleList, nn.Sequential)) and module in tree.parents:
        named |= set(words(type(tree.parents[module][0]).__name__))
    if isinstance(module, nn.ModuleList) and named.isdisjoint(_NAMED):
        return  # not one after another, but side by side
    is_named = isinstance(module, nn.Sequential) or not named.isdisjoint(_NAMED)
    beside_blocks = not is_repeated(tree, module) and any(isinstance(child, _LISTS) and len(child) for child in module.children())
    if not is_named and (beside_blocks or not _ATTENTION.isdisjoint(named)):
        return  # what is beside blocks is one end of the network or the other

    def add(slot: Slot, role: Role) -> None:
        claims.add(slot, Claim(Source.STRUCTURE, role, f"feed-forward layers of {kind}", axis=line_axis(slot.layer)))

    for a, b in combinations(linears, 2) if not isinstance(module, nn.Sequential) else ():
        if fans(a[1]) != fans(b[1]):
            continue
        down = next((c for c in linears if c is not a and c is not b and fans(c[1])[1] == fans(a[1])[0]), None)
        if down is not None and (is_named or fans(a[1])[0] != fans(a[1])[1]):
            gate = b if _is_gate(b[0]) and not _is_gate(a[0]) else a
            up = b if gate is a else a
            add(gate[1], Role.MLP_GATE)
            add(up[1], Role.MLP_UP)
            add(down[1], Role.MLP_DOWN)
            return
    order = [name for name, child in tree.children(module).items() if any(sum(n > 1 for n in slot.shape) > 1 for slot in tree.under(child))]
    for (one, a), (two, b) in pairwise(linears):
        if not is_named and order.index(two) != order.index(one) + 1:
            continue
        (out, into), hidden = fans(a), fans(b)[1]
        if not (claims.is_open(a) and claims.is_open(b)) or not (is_named or out > into):
            continue
        if out == hidden:
            add(a, Role.MLP_UP)
            add(b, Role.MLP_DOWN)
        elif out == 2 * hidden:
            add(a, Role.MLP_GATE_UP)
            add(b, Role.MLP_DOWN)


def _is_gate(name: str) -> bool:
    return not _GATE.isdisjoint(words(name)) or name in ("w1", "wi_0", "linear_1g")
