"""Graph networks: what message passing holds."""

from __future__ import annotations

import inspect
from functools import lru_cache

from torch import nn

from lightning_adam_mini.detection.calls import called_names, methods
from lightning_adam_mini.detection.layers import is_linear, is_matrix, line_axis
from lightning_adam_mini.detection.names import words
from lightning_adam_mini.detection.registry import qualified_names
from lightning_adam_mini.detection.roles import Role
from lightning_adam_mini.detection.tree import Slot, Tree

_PYG = "torch_geometric.nn.conv.message_passing.MessagePassing"
GRAPH_ARGUMENTS = frozenset({"edge_index", "adj", "adj_t", "adj_mat", "adjacency", "edges", "dst", "senders", "receivers", "graph", "g"})
"""What arguments that are a graph are called."""


def is_message_passing(module: nn.Module) -> bool:
    """Whether ``module`` is a graph convolution of torch-geometric or DGL."""
    return any(name == _PYG or name.startswith("dgl.nn.pytorch.conv.") for name in qualified_names(type(module)))


def forward_arguments(module: nn.Module) -> tuple[str, ...]:
    """Names of what ``module.forward`` takes; TorchScript's modules do not say."""
    return _arguments(type(module))


@lru_cache(maxsize=4096)
def _arguments(cls: type[nn.Module]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(cls.forward).parameters)[1:]
    except (AttributeError, TypeError, ValueError):
        return ()


def graph_argument(module: nn.Module) -> str | None:
    """The argument of ``module.forward`` that is a graph, or what it takes out of one, by its name."""
    return next((name for name in (*forward_arguments(module), *_unpacked(type(module))) if name in GRAPH_ARGUMENTS), None)


@lru_cache(maxsize=4096)
def _unpacked(cls: type[nn.Module]) -> tuple[str, ...]:
    """Variables of ``cls.forward`` that can only be of a graph."""
    code = next((function.__code__ for name, function in methods(cls) if name == "forward"), None)
    return tuple(name for name in code.co_varnames if name == "edge_index") if code is not None else ()


def claim_graph(tree: Tree) -> None:
    """Claim the weights of graph convolutions: their own and those of linear layers that they hold directly."""
    fed = {slot for down, up in tree.shown.pairs() if down.shape == up.shape[::-1] for slot in (down, up)}  # there and back
    for module in tree.modules.values():
        if not is_message_passing(module):
            with tree.guarded(module):
                _claim_by_hand(tree, module, fed)
            continue
        with tree.guarded(module):
            kind = type(module).__name__
            for slot in _direct(tree, module):
                if not slot.is_open or slot.role in (Role.BIAS, Role.NORM):
                    continue
                if slot.layer is module and ("att" in words(slot.attr) or "attn" in words(slot.attr)):
                    slot.suppose(Role.ATTN_OTHER, f"attention vector of {kind}", axis=0)
                elif len(slot.shape) >= 2:
                    slot.suppose(Role.GRAPH_CONV, f"weight of {kind}", axis=_axis(module, slot))
            for slot in tree.under(module):  # a layer of its own kind, such as DNAConv's grouped one
                if slot.role in (Role.OTHER, Role.LINEAR) and not is_linear(slot.layer) and slot.is_open and len(slot.shape) >= 2:
                    slot.suppose(Role.GRAPH_CONV, f"weight of {kind}", axis=len(slot.shape) - 1)


def _claim_by_hand(tree: Tree, module: nn.Module, fed: set[Slot]) -> None:
    """The matrices of a layer that takes a graph, or the bare ones of one that takes more than features in a network that takes a graph.

    Those of a feed-forward, in ``fed``, are none.
    """
    takes = graph_argument(module)
    slots = [s for s in tree.own(module).values() if s.layer is module and len(s.shape) == 2]
    if takes == "edge_index" and tree.parent(module) is not None:
        slots += [s for child in tree.children(module).values() for s in tree.own(child).values() if is_matrix(s)]
    slots = [slot for slot in slots if slot.is_open and slot.role is Role.LINEAR and slot not in fed]
    if not slots or module in tree.attention:
        return
    if takes is None and len(forward_arguments(module)) > 1:
        around = (m for m in tree.around(module) if m is not module and not isinstance(m, (nn.ModuleList, nn.ModuleDict)))
        takes = next(map(graph_argument, around), None)
    if takes is not None:
        axis = 0 if "linear" in called_names(type(module)) else 1
        for slot in slots:
            along = axis if slot.layer is module else line_axis(slot.layer)
            slot.suppose(Role.GRAPH_CONV, f"matrix of {type(module).__name__}, which takes {takes}", axis=along)


def _direct(tree: Tree, module: nn.Module) -> list[Slot]:
    slots = [slot for slot in tree.own(module).values() if slot.layer is module]
    for child in tree.children(module).values():
        lists = isinstance(child, (nn.ModuleList, nn.ModuleDict)) or "hetero" in words(type(child).__name__)
        held = [child, *child.modules()] if lists else [child]
        slots += [slot for inner in held if is_linear(inner) or lists for slot in tree.own(inner).values() if len(slot.shape) >= 2]
    return slots


def _axis(module: nn.Module, slot: Slot) -> int:
    # torch-geometric's and DGL's bare weights are (..., in, out), other than a Linear's.
    return len(slot.shape) - 1 if slot.layer is module else line_axis(slot.layer)
