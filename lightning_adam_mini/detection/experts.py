"""Mixtures of experts: weights of many feed-forward layers in one tensor, and the layers that choose among them."""

from __future__ import annotations

from torch import nn

from lightning_adam_mini.detection.layers import is_linear
from lightning_adam_mini.detection.names import words
from lightning_adam_mini.detection.roles import Role
from lightning_adam_mini.detection.tree import Slot, Tree

_DOWN = frozenset({"down", "w2", "output", "out", "wo"})
_UP = frozenset({"up", "gate", "w1", "w3", "input", "in", "wi"})
_ROUTERS = frozenset({"router", "gate", "gating"})


def claim_experts(tree: Tree) -> None:
    """Add the claims of stacked experts, weights of (experts, outputs, inputs) or (experts, inputs, outputs), and of routers."""
    for module in tree.modules.values():
        with tree.guarded(module):
            _claim_module(tree, module)
            _claim_routers(tree, module)


def _claim_module(tree: Tree, module: nn.Module) -> None:
    stacked = {name: slot for name, slot in _stacked(tree, module).items() if slot.is_open}
    downs = [slot for name, slot in stacked.items() if not _DOWN.isdisjoint(words(name))]
    ups = {name: slot for name, slot in stacked.items() if not _UP.isdisjoint(words(name)) and slot not in downs}
    if len(downs) == 1 and ups:
        _claim_stack(module, ups, downs[0])
    elif not {"router", "gate"}.isdisjoint(words(type(module).__name__)):
        for slot in tree.own(module).values():
            if slot.layer is module and len(slot.shape) == 2 and slot.is_open:
                slot.suppose(Role.ROUTER, f"{type(module).__name__} chooses experts", axis=0)


def _stacked(tree: Tree, module: nn.Module) -> dict[str, Slot]:
    """The weights of three dimensions that ``module`` or one of its children that are not convolutions holds, by name."""
    found = {name: slot for name, slot in tree.own(module).items() if len(slot.shape) == 3 and slot.layer is module}
    for name, child in tree.children(module).items():
        slot = tree.own(child).get("weight")
        if slot is not None and len(slot.shape) == 3 and not {"experts", "expert"}.isdisjoint(words(type(child).__name__)):
            found[name] = slot
    return found


def _claim_stack(module: nn.Module, ups: dict[str, Slot], down: Slot) -> None:
    kind = type(module).__name__
    _, a, b = down.shape
    for name, slot in ups.items():
        _, c, d = slot.shape
        # (outputs, inputs): the down projection reads what the up projection gives, or half of it if that holds a gate too.
        axis = 1 if (c in (b, 2 * b) and d == a) else 2
        if axis == 2 and not (d in (a, 2 * a) and c == b):
            continue
        fused = slot.shape[axis] == 2 * down.shape[3 - axis]
        role = Role.MLP_GATE_UP if fused else Role.MLP_GATE if "gate" in words(name) or name == "w1" else Role.MLP_UP
        slot.suppose(role, f"experts of {kind}", axis=axis)
        down.suppose(Role.MLP_DOWN, f"experts of {kind}", axis=axis)


def _claim_routers(tree: Tree, module: nn.Module) -> None:
    """Linear layers called router or gate beside experts."""
    children = tree.children(module)
    if not any({"expert", "experts"} & set(words(name)) for name in children):
        return
    for name, child in children.items():
        slot = tree.own(child).get("weight")
        if slot is not None and is_linear(child) and slot.is_open and not _ROUTERS.isdisjoint(words(name)):
            slot.suppose(Role.ROUTER, f"{type(module).__name__}.{name} chooses experts")
