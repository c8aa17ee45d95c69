"""Which factor of a product of queries and keys is which: the sum over values, for one query, runs over keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightning_adam_mini.detection.evidence.graph import Graph
from lightning_adam_mini.detection.evidence.replay import Replay, ReplayError, stretch
from lightning_adam_mini.detection.evidence.tape import Node, Ref

_SHIFT = 2  # queries that one row of the softmax may come from: two where relative positions are shifted into place
_EACH_BY_ITSELF = frozenset(
    {"mul", "div", "add", "sub", "mul_", "div_", "add_", "sub_", "masked_fill", "masked_fill_", "where", "tanh", "_to_copy", "clamp"}
    | {"native_dropout", "neg", "dropout", "bernoulli_", "nan_to_num", "rsub"}
)


@dataclass(frozen=True)
class ValueUse:
    """The product that a softmax's result goes into.

    Attributes:
        node: The product.
        weights: The softmax's result as the product reads it.
        value: The other factor.
        through: Maps by a weight between the softmax and the product.
        is_left: Whether ``weights`` is the left factor.
    """

    node: Node
    weights: Ref
    value: Ref
    through: tuple[Node, ...]
    is_left: bool


@dataclass(frozen=True)
class Scores:
    """A product, the softmax that it goes into, and what that goes into.

    Attributes:
        product: The product of queries and keys.
        softmax: The softmax or exponential.
        source: What the softmax is taken of.
        way: Maps by a weight between the product and the softmax.
        use: Where the result goes.
    """

    product: Node
    softmax: Node
    source: Ref
    way: tuple[Node, ...]
    use: ValueUse


def queries_are_left(graph: Graph, scores: Scores) -> bool:
    """Whether the left factor of the product holds the queries.

    Raises:
        ReplayError: If that cannot be told.
    """
    quick = _by_layout(graph, scores)
    return _by_gradient(graph, scores) if quick is None else quick


def _by_layout(graph: Graph, scores: Scores) -> bool | None:
    """From strides, where only operations on each element by itself lie between the two products; None elsewhere."""
    out, use = scores.product.outputs[0], scores.use
    if scores.way or use.through or not scores.softmax.outputs:
        return None
    result = scores.softmax.outputs[0]
    before = stretch(graph, out, scores.product.index, scores.source, scores.softmax.index)
    after = stretch(graph, result, scores.softmax.index, use.weights, use.node.index)
    for node in (*before, *after):
        same = [ref for ref in node.outputs if _layout(ref) == _layout(out)]
        if node.op not in _EACH_BY_ITSELF or (node.outputs and not same):
            return None
    if _layout(result) != _layout(out) or out.shape[-1] < 2 or out.shape[-2] < 2:
        return None
    summed = -1 if use.is_left else -2
    step, length = use.weights.stride[summed], use.weights.shape[summed]
    if (step, length) == (out.stride[-1], out.shape[-1]):
        return True
    return False if (step, length) == (out.stride[-2], out.shape[-2]) else None


def _layout(ref: Ref) -> tuple[int, ...]:
    """The elements of a dense tensor in the order of memory, whatever its dimensions are called."""
    pairs = sorted(((step, size) for step, size in zip(ref.stride, ref.shape, strict=True) if size > 1), reverse=True)
    expected, sizes = 1, []
    for step, size in reversed(pairs):
        if step != expected:
            return (-1,)
        expected *= size
        sizes.append(size)
    return (expected,)


def _by_gradient(graph: Graph, scores: Scores) -> bool:
    """From the products that one row of the softmax, whose entries are summed over, depends on."""
    out, use = scores.product.outputs[0], scores.use
    way = (*scores.way, scores.softmax, *use.through)
    nodes = stretch(graph, out, scores.product.index, use.weights, use.node.index, through=way)
    replay = Replay(graph.tape, out, use.weights, nodes)
    with torch.enable_grad():
        leaf = replay.values().requires_grad_()
        weights = replay(leaf)
        rows = weights if use.is_left else weights.transpose(-1, -2)
        rows = rows.reshape(-1, rows.shape[-1])
        row = rows[int(rows.detach().abs().sum(-1).argmax())]
        chosen = (row * torch.randn(row.shape, generator=torch.Generator().manual_seed(0)).to(row)).sum()
        if not chosen.requires_grad:
            raise ReplayError("gradients stop at its softmax")
        (grad,) = torch.autograd.grad(chosen, leaf, allow_unused=True)
    if grad is None:
        raise ReplayError("gradients stop at its softmax")
    touched = grad.as_strided(out.shape, out.stride, out.offset).abs().float()
    touched = touched.reshape(-1, *out.shape[-2:]).sum(0)
    down, across = (int((sums > 0.01 * sums.max()).sum()) for sums in (touched.sum(-1), touched.sum(-2)))
    if min(down, across) > _SHIFT:
        raise ReplayError("what its softmax weighs mixes several queries and several keys")
    if down == across:
        raise ReplayError("the example is too short; give more than one token")
    return across > down
