"""UNets of diffusion, by what they do: one vector of time goes into every block, and features of the way down are joined on the way up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from lightning_adam_mini.detection.layers import fans, is_conv, is_depthwise, is_linear
from lightning_adam_mini.detection.names import words
from lightning_adam_mini.detection.tree import Slot, Tree


@dataclass(frozen=True)
class TimeBlocks:
    """Blocks of convolutions with a linear layer or two each, all of which read a vector of the same width. A convolution may be a block.

    Attributes:
        width: The width of the vector.
        slots: The weights of the linear layers.
        makers: Weights of linear layers in none of the blocks that give as many numbers.
        joined: How many of the blocks read as many channels as two earlier ones give together, and as no one gives.
    """

    width: int
    slots: tuple[Slot, ...]
    makers: tuple[Slot, ...]
    joined: int

    def __str__(self) -> str:
        return (
            f"{len(self.slots)} layers in blocks of convolutions read one vector of {self.width} numbers, {self.joined} two features joined"
        )


def find_time_blocks(tree: Tree) -> TimeBlocks | None:
    """The blocks that make a network a UNet of diffusion; None if it is none, or none by its structure."""
    convs = _held(tree, is_conv)
    linears = _held(tree, is_linear) if convs else {}
    readers: defaultdict[int, dict[nn.Module, tuple[list[Slot], list[Slot]]]] = defaultdict(dict)
    holders = {slot: next((m for m in tree.around(slot.layer) if m in convs), tree.root) for slot in linears.get(tree.root, ())}
    last: Slot | None = None
    for slot in tree.slots if holders else ():
        if slot in convs[tree.root]:
            last = slot
        if (block := holders.get(slot)) is None:
            continue
        if block is not tree.root and len(linears[block]) < 3 and len({fans(one)[1] for one in linears[block]}) == 1:
            readers[fans(slot)[1]][block] = (linears[block], convs[block])
        elif last is not None and tree.parent(last.layer) is block and fans(slot)[0] == fans(last)[0]:
            # Convolutions and linear layers side by side: each of these is added to what the one before it gives.
            readers[fans(slot)[1]][last.layer] = ([slot], [last])
    for width, blocks in readers.items():
        given = {fans(held[-1])[0] for _, held in blocks.values()}
        read = [max(fans(conv)[1] for conv in held) for _, held in blocks.values()]
        joined = sum(channels not in given and any(channels - one in given for one in given) for channels in read)
        if len(blocks) > 2 and joined:
            slots = tuple(slot for held, _ in blocks.values() for slot in held)
            outside = (slot for slot, holder in holders.items() if set(slots) < set(linears[holder]))
            return TimeBlocks(width, slots, tuple(slot for slot in outside if fans(slot)[0] == width), joined)
    return None


def _held(tree: Tree, is_kind: Callable[[nn.Module], bool]) -> dict[nn.Module, list[Slot]]:
    """The weights of the layers of a kind in each module that holds some, deep down too."""
    held: defaultdict[nn.Module, list[Slot]] = defaultdict(list)
    for slot in tree.slots:
        if len(slot.shape) >= 2 and is_kind(slot.layer) and not is_depthwise(slot.layer):
            for module in tree.around(slot.layer):
                held[module].append(slot)
    return held


def down_and_up(module: nn.Module) -> str | None:
    """What shows by names that a module is a UNet: lists of stages that go down and up; None if nothing does."""
    lists = {words(name)[0]: name for name, child in module._modules.items() if isinstance(child, nn.ModuleList) and words(name)}
    down, up = lists.get("down", lists.get("downs")), lists.get("up", lists.get("ups"))
    if down and up:
        return f"{down} and {up}"
    return f"{down} that control another one" if down and "controlnet" in lists else None
