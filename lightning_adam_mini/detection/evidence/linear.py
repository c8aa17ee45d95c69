"""The output lines of a map by a weight: which line of which parameter made each element of its output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_adam_mini.detection.evidence.graph import Graph, is_convolution
from lightning_adam_mini.detection.evidence.tape import Node, Ref


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A map by a weight.

    Attributes:
        node: The operation.
        out: Its output.
        data: What it maps.
        codes: For each line the code of the weight's first element in it.
        others: For each line the code of the weight's last element in it.
        places: The line of each element of the output's storage; -1 where there is none.
        added: A bias in the same operation, and the line of each of its elements.
    """

    node: Node
    out: Ref
    data: Ref
    codes: Tensor
    others: Tensor
    places: Tensor
    added: tuple[Ref, Tensor] | None

    def lines_of(self, ref: Ref) -> Tensor:
        """The line of each element of a view of the output."""
        return self.places[ref.offsets()]


def read_linear(graph: Graph, node: Node) -> LinearMap | None:
    """The map that ``node`` is, or None if the lines of its weight are not known."""
    factors, side = graph.factors(node), graph.weight_side(node)
    if factors is None or side is None or not node.outputs:
        return None
    weight, data = (factors.right, factors.left) if side == "right" else (factors.left, factors.right)
    out = node.outputs[0]
    first, last = _inner(node, weight, side, 0), _inner(node, weight, side, -1)
    if first is None or last is None:
        return None
    codes, others = graph.codes.read(first, node.index), graph.codes.read(last, node.index)
    if codes is None or others is None or bool((codes < 0).any()):
        return None
    shape = _as_output(node, side, len(out.shape), codes)
    if shape is None:
        return None
    lines, inverse = torch.unique(codes.flatten(), return_inverse=True)
    first_at = torch.zeros_like(lines).scatter_(0, inverse.flip(0), torch.arange(inverse.numel()).flip(0))
    try:
        grid = inverse.view(shape).expand(out.shape)
    except RuntimeError:
        return None
    places = torch.full((graph.tape.sizes[out.storage] // out.dtype.itemsize,), -1)
    places[out.offsets()] = grid
    added = None
    if factors.added is not None:
        one_dim = len(factors.added.shape) == 1
        target = grid.movedim(1, -1) if is_convolution(node) else grid
        if one_dim and target.shape[-1] == factors.added.shape[0]:
            added = (factors.added, target.reshape(-1, target.shape[-1])[0])
    return LinearMap(node, out, data, lines, others.flatten()[first_at], places, added)


def _inner(node: Node, weight: Ref, side: str, at: int) -> Ref | None:
    """The weight with its inner dimensions fixed at their first or last index."""
    if is_convolution(node):
        transposed = bool(node.args[6]) if len(node.args) > 6 and isinstance(node.args[6], bool) else False
        groups = node.args[8] if len(node.args) > 8 and isinstance(node.args[8], int) else 1
        if transposed and groups != 1:
            return None
        ref = weight
        while len(ref.shape) > 2:
            ref = ref.select(-1, at)
        return ref.select(0 if transposed else 1, at)
    if node.op in ("linear", "mkldnn_linear"):
        return weight.select(-1, at)
    if len(weight.shape) < 2:
        return None
    return weight.select(-2 if side == "right" else -1, at)


def _as_output(node: Node, side: str, dims: int, codes: Tensor) -> list[int] | None:
    """The shape in which the codes broadcast to the output."""
    if is_convolution(node):
        return [1, -1] + [1] * (dims - 2)
    if node.op in ("linear", "mkldnn_linear"):
        return [1] * (dims - 1) + [codes.numel()]
    if node.op in ("mv", "addmv"):
        return [codes.numel()]
    batch = list(codes.shape[:-1])
    return [*batch, 1, codes.shape[-1]] if side == "right" else [*batch, codes.shape[-1], 1]
