"""Mixtures of experts: weights of many feed-forward layers in one tensor, and the layers that choose among them."""

from __future__ import annotations

from torch import nn

from lightning_adam_mini.detection.layers import is_linear
from lightning_adam_mini.detection.names import words
from lightning_adam_mini.detection.registry import is_conventional
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
    downs = [slot for name, slot in stacked.items() if not _DOWN.isdisjoint((name, *words(name)))]
    ups = {name: slot for name, slot in stacked.items() if not _UP.isdisjoint((name, *words(name))) and slot not in downs}
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
        # The down projection reads what the up projection gives, or half of it if that holds a gate too: of (outputs, inputs), or turned.
        fits = {1: c in (b, 2 * b) and d == a, 2: d in (a, 2 * a) and c == b}
        if not any(fits.values()):
            continue
        # If it may be either: libraries keep outputs first, and an expert is wider inside.
        axis = 1 if fits[1] and (not fits[2] or c > d or is_conventional(type(module))) else 2
        fused = slot.shape[axis] == 2 * down.shape[3 - axis]
        role = Role.MLP_GATE_UP if fused else Role.MLP_GATE if "gate" in words(name) or (name == "w1" and len(ups) > 1) else Role.MLP_UP
        slot.suppose(role, f"experts of {kind}", axis=axis)
        down.suppose(Role.MLP_DOWN, f"experts of {kind}", axis=axis)


def _claim_routers(tree: Tree, module: nn.Module) -> None:
    """Linear layers called router or gate beside experts, modules or stacks of as many."""
    children = tree.children(module)
    has_experts = any({"expert", "experts"} & set(words(name)) for name in children)
    numbers = {slot.shape[0] for slot in _stacked(tree, module).values()}
    for name, child in children.items():
        slot = tree.own(child).get("weight")
        if slot is None or not (is_linear(child) and slot.is_open) or _ROUTERS.isdisjoint(words(name)):
            continue
        if has_experts or slot.shape[0] in numbers:
            slot.suppose(Role.ROUTER, f"{type(module).__name__}.{name} chooses experts")
