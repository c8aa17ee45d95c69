"""Low-rank adapters by their shapes: two bare matrices whose product is as large as the weight that they stand beside."""

from __future__ import annotations

from torch import nn

from lightning_adam_mini.detection.layers import fans, is_linear
from lightning_adam_mini.detection.roles import Role
from lightning_adam_mini.detection.tree import Slot, Tree


def claim_adapters(tree: Tree) -> None:
    """Add the claims of all pairs of matrices beside one linear layer, or in it, as LoRA is written by hand."""
    for module in tree.modules.values():
        with tree.guarded(module):
            own = [slot for slot in tree.own(module).values() if slot.layer is module and slot.attr != "weight"]
            bare = [slot for slot in own if len(slot.shape) == 2 and slot.is_open]
            base = _base(tree, module)
            if len(bare) == 2 and base is not None:
                _claim_pair(bare[0], bare[1], fans(base))


def _base(tree: Tree, module: nn.Module) -> Slot | None:
    """The weight of ``module`` if it is a linear layer, or of the only one that it holds."""
    layers = [layer for layer in (module, *tree.children(module).values()) if is_linear(layer)]
    return tree.own(layers[0]).get("weight") if len(layers) == 1 else None


def _claim_pair(first: Slot, second: Slot, sizes: tuple[int, int]) -> None:
    outputs, inputs = sizes
    for axis in (0, 1):  # (out, in) as F.linear reads them, or (in, out)
        rank = first.shape[axis]
        if first.shape[1 - axis] == inputs and second.shape[axis] == outputs and second.shape[1 - axis] == rank < min(sizes):
            for slot, role in ((first, Role.LORA_A), (second, Role.LORA_B)):
                why = f"{slot.attr}, a matrix of rank {rank} beside one of {outputs} x {inputs}"
                slot.suppose(role, why, axis=axis)
            return
