"""Claims from the registry: an entry's parts, found in a module and filled in."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from torch import nn

from lightning_adam_mini.detection.known import diffusers, graph, others, timm, torch_nn, transformers
from lightning_adam_mini.detection.layers import is_depthwise, is_lora, is_norm_weight, line_axis
from lightning_adam_mini.detection.names import unwrap, words
from lightning_adam_mini.detection.registry import KnownModule, Part, add_builtin, fill_template, find_entry
from lightning_adam_mini.detection.roles import ATTENTION, Role, Source
from lightning_adam_mini.detection.shown import role_of_lines
from lightning_adam_mini.detection.tree import Claim, Slot, Tree

for _table in (torch_nn, timm, transformers, diffusers, graph, others):
    add_builtin(_table.MODULES)


def claim_known(tree: Tree) -> None:
    """Add the claims of all registered modules in ``tree``."""
    for module in tree.modules.values():
        found = find_entry(module)
        if found is None:
            continue
        name, entry = found
        for path, text in entry.parts.items():
            for target in _targets(tree, module, path.split(".")):
                _claim_part(tree, module, name, entry, Part.read(text), target)


def main_weights(tree: Tree, target: Slot | nn.Module, adapters: bool = False) -> list[Slot]:
    """The matrices of a child that is named as one weight: its own, or those of the layers in it that mix channels.

    Args:
        tree: The model.
        target: The child, or the parameter itself.
        adapters: Whether low-rank adapters beside a layer count.
    """
    if isinstance(target, Slot):
        return [target]
    slots = (slot for slot in tree.under(target) if len(slot.shape) >= 2 and not slot.magnitude)
    return [slot for slot in slots if (adapters or not is_lora(slot)) and not is_norm_weight(slot) and not is_depthwise(slot.layer)]


def _targets(tree: Tree, module: nn.Module, path: list[str]) -> Iterator[Slot | nn.Module]:
    """The children or parameters of ``module`` at ``path``."""
    module = unwrap(module)
    head, rest = path[0], path[1:]
    own = tree.own(module)
    for name, slot in own.items():
        if not rest and fnmatchcase(name, head):
            yield slot
    for name, child in tree.children(module).items():
        if fnmatchcase(name, head):
            if rest:
                yield from _targets(tree, child, rest)
            else:
                yield child


def _claim_part(tree: Tree, module: nn.Module, name: str, entry: KnownModule, part: Part, target: Slot | nn.Module) -> None:
    reason = f"known module {name}"
    role = Role(part.role) if part.role else None
    if part.template is None:
        assert role is not None
        for slot in main_weights(tree, target, adapters=role in (Role.LORA_A, Role.LORA_B)):
            slot.add(Claim(Source.KNOWN, role, reason, axis=_axis(part, slot)))
        return
    weights = main_weights(tree, target)
    for slot in reversed(weights):
        axis = _axis(part, slot)
        lines = fill_template(part.template, slot.shape[axis], module, entry.symbols)
        if lines is None:
            continue
        owner = role or role_of_lines(lines)
        if owner in ATTENTION:
            tree.attention.setdefault(module)
        if len(slot.shape) == 1 and "bias" in words(slot.attr):
            slot.add(Claim(Source.KNOWN, Role.BIAS, reason, owner=owner, lines=lines))
        else:
            slot.add(Claim(Source.KNOWN, owner, reason, axis=axis, lines=lines))
        return
    for slot in weights[-1:]:
        tree.attention.setdefault(module)
        why = f"{reason}, but {part.template} does not fill {slot.shape[_axis(part, slot)]} lines"
        slot.add(Claim(Source.KNOWN, role or Role.QKV, why, axis=_axis(part, slot), guess=True))


def _axis(part: Part, slot: Slot) -> int:
    return line_axis(slot.layer) if part.axis is None else part.axis
