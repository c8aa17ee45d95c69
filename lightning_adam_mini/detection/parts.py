"""Networks within a model: a graph encoder before a transformer, a CNN under one, the two networks of a GAN.

A model is taken apart only where its own children are networks of different families. A network itself is never taken apart: neither a
diffusion UNet, whose stages go down and up, nor a hybrid, whose stages are lists of blocks, nor what stands in a list of layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice

from torch import nn

from lightning_adam_mini.detection.architecture import decide
from lightning_adam_mini.detection.graph import is_message_passing
from lightning_adam_mini.detection.report import PartReport
from lightning_adam_mini.detection.roles import CONVOLUTIONS, Architecture, Role
from lightning_adam_mini.detection.signs import find_signs
from lightning_adam_mini.detection.tree import Tree
from lightning_adam_mini.detection.unet import down_and_up, find_time_blocks

_ATTENTIVE = frozenset({Architecture.TRANSFORMER, Architecture.DIFFUSION_TRANSFORMER, Architecture.HYBRID})
_VAGUE = frozenset({Architecture.MLP, Architecture.UNKNOWN})
_LISTS = (nn.ModuleList, nn.Sequential)
_RECURRENT = (*_LISTS, nn.RNNBase, nn.RNNCellBase)
# As for a whole model: what has fewer convolutions makes patches or frames for the network that follows.
_CONV_LAYERS, _CONV_SHARE = 2, 0.05


@dataclass(frozen=True)
class _Network:
    """A child that is a network of its own.

    Attributes:
        report: What it is.
        tree: Its part of the model's tree.
    """

    report: PartReport
    tree: Tree

    @property
    def is_list(self) -> bool:
        return isinstance(self.tree.root, _LISTS)


def find_parts(tree: Tree) -> tuple[PartReport, ...]:
    """The networks that a model is composed of, outer before inner; none if it is one network or all of them are of one family."""
    return tuple(_parts(tree))


def _parts(tree: Tree) -> Iterator[PartReport]:
    module = tree.root
    if down_and_up(module) is not None or is_message_passing(module) or module in tree.attention:
        return
    networks = list(_networks(tree))
    unet = find_time_blocks(tree)
    if unet is not None and all(network.report.signs is None or network.report.signs.unet != str(unet) for network in networks):
        return  # no child holds all of its blocks: they are its own stages
    composed = any(_differ(one, other) for one, other in combinations(networks, 2))
    for network in networks:
        if composed:
            yield network.report
        if not network.is_list:
            yield from _parts(network.tree)


def sizes_of(tree: Tree) -> list[tuple[Role, int]]:
    """Role and number of elements of each tensor."""
    return [(slot.role, slot.param.numel()) for slot in tree.slots]


def _networks(tree: Tree) -> Iterator[_Network]:
    total = sum(slot.param.numel() for slot in tree.slots)
    for child in dict.fromkeys(tree.children(tree.root).values()):
        part = tree.part(child)
        if part is None or not part.slots or isinstance(child, nn.Linear):  # a layer, not a network
            continue
        signs = find_signs(part)
        architecture, reason, guess = decide(signs, sizes_of(part))
        if architecture in _VAGUE or (architecture in _ATTENTIVE and not _has_blocks(part)):
            continue
        if architecture is Architecture.RNN and isinstance(child, _RECURRENT):  # the GRU of a graph network
            continue
        if architecture is Architecture.CNN:
            sizes = [slot.param.numel() for slot in part.slots if slot.role in CONVOLUTIONS]
            if len(sizes) <= _CONV_LAYERS or sum(sizes) <= _CONV_SHARE * total:
                continue
        yield _Network(PartReport(tree.paths[child], architecture, reason, guess, signs), part)


def _has_blocks(part: Tree) -> bool:
    """Whether a list holds blocks with attention in them: a transformer. A list of bare attention is layers of another network."""
    return any(isinstance(holder, _LISTS) for attention in part.attention for holder in islice(part.around(attention), 2, None))


def _differ(one: _Network, other: _Network) -> bool:
    """Whether two children of a module are different networks rather than stages of one."""
    if _family(one) is _family(other):
        return False
    for conv, attention in ((one, other), (other, one)):
        if conv.report.architecture is Architecture.CNN and attention.report.architecture in _ATTENTIVE:
            return attention.report.architecture is not Architecture.HYBRID and not attention.is_list
    return True


def _family(network: _Network) -> Architecture:
    return Architecture.TRANSFORMER if network.report.architecture in _ATTENTIVE else network.report.architecture
