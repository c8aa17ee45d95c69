"""Where attention is computed: one operation that is attention as a whole, or two products with a softmax between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lightning_adam_mini.detection.evidence.graph import Graph, Kind, attention_operands
from lightning_adam_mini.detection.evidence.heads import Operand
from lightning_adam_mini.detection.evidence.replay import Replay, ReplayError, stretch
from lightning_adam_mini.detection.evidence.tape import Node, Ref

_STEPS = 400
_MIXES = 1  # maps by a weight between a product and its softmax: heads that talk


@dataclass(frozen=True)
class Site:
    """One attention: its operands, or why they are not known."""

    module: str
    index: int
    operands: tuple[Operand, ...]
    problem: str | None = None


@dataclass(frozen=True)
class _Use:
    """A product that a softmax's result goes into."""

    node: Node
    weights: Ref
    value: Ref
    through: tuple[Node, ...]
    is_left: bool


def find_sites(graph: Graph) -> Iterator[Site]:
    """All attentions on the tape, in order."""
    for node in graph.tape.nodes:
        kind = graph.kind(node)
        if kind is Kind.ATTENTION:
            operands = attention_operands(node)
            assert operands is not None
            made = tuple(Operand(role, ref, node.index, -1, -2) for role, ref in zip("qkv", operands, strict=True))
            yield Site(node.module, node.index, made)
        elif kind in (Kind.SOFTMAX, Kind.EXP):
            yield from _around(graph, node, kind)


def _around(graph: Graph, node: Node, kind: Kind) -> Iterator[Site]:
    source = next((a for a in node.args if isinstance(a, Ref)), None)
    use = None if source is None or graph.tape.is_constant(source) else _value_product(graph, node)
    if source is None or use is None:
        return
    scores = [(product, way) for product, way in _score_products(graph, source, node)]
    if not scores and kind is Kind.SOFTMAX:
        yield Site(node.module, node.index, (), "what its softmax weighs are not products of queries and keys")
    for product, way in scores:
        yield _site(graph, product, (*way, node, *use.through), use)


def _score_products(graph: Graph, source: Ref, softmax: Node) -> Iterator[tuple[Node, tuple[Node, ...]]]:
    """The products that a softmax is taken of, each with the weighted maps on the way."""
    seen: set[tuple[int, int]] = set()
    found: dict[int, tuple[Node, tuple[Node, ...]]] = {}
    todo: list[tuple[Ref, int, tuple[Node, ...]]] = [(source, softmax.index, ())]
    while todo and len(seen) < _STEPS:
        ref, before, way = todo.pop()
        for node in graph.tape.writers(ref, before):
            if (node.index, len(way)) in seen:
                continue
            seen.add((node.index, len(way)))
            kind = graph.kind(node)
            if kind is Kind.PRODUCT:
                if not _is_weighted_sum(graph, node):
                    found.setdefault(node.index, (node, way))
            elif kind is Kind.PASS or (kind is Kind.LINEAR and len(way) < _MIXES):
                on = (*way, node) if kind is Kind.LINEAR else way
                todo += [(r, node.index, on) for r in node.inputs if r.is_differentiable and not graph.tape.is_constant(r)]
    yield from (found[i] for i in sorted(found))


def _is_weighted_sum(graph: Graph, product: Node) -> bool:
    """Whether a factor of ``product`` is the result of a softmax: it is the second product of another attention."""
    factors = graph.factors(product)
    assert factors is not None
    walks = [graph.walk_back(ref, product.index) for ref in (factors.left, factors.right)]
    return any(graph.kind(end) is Kind.SOFTMAX for walk in walks for end in walk.ends)


def _value_product(graph: Graph, softmax: Node) -> _Use | None:
    """The product of the softmax's result with the values."""
    seen: set[tuple[int, int]] = set()
    todo: list[tuple[int, int, tuple[Node, ...]]] = [(ref.storage, softmax.index, ()) for ref in softmax.outputs]
    todo += [(ref.storage, softmax.index, ()) for ref in softmax.written]
    while todo and len(seen) < _STEPS:
        storage, after, way = todo.pop(0)
        for node in graph.tape.readers(storage, after):
            if (node.index, len(way)) in seen:
                continue
            seen.add((node.index, len(way)))
            kind = graph.kind(node)
            if kind is Kind.PRODUCT:
                factors = graph.factors(node)
                assert factors is not None
                is_left = factors.left.storage == storage
                value = factors.right if is_left else factors.left
                return _Use(node, factors.left if is_left else factors.right, value, way, is_left)
            if kind is Kind.PASS or (kind is Kind.LINEAR and len(way) < _MIXES):
                on = (*way, node) if kind is Kind.LINEAR else way
                todo += [(ref.storage, node.index, on) for ref in (*node.outputs, *node.written) if ref.is_differentiable]
    return None


def _site(graph: Graph, product: Node, way: tuple[Node, ...], use: _Use) -> Site:
    factors = graph.factors(product)
    assert factors is not None
    if len(factors.left.shape) < 2 or len(factors.right.shape) < 2 or len(use.value.shape) < 2:
        return Site(product.module, product.index, (), "its products are of single vectors")
    try:
        first = _queries_are_left(graph, product, way, use)
    except ReplayError as error:
        return Site(product.module, product.index, (), f"its queries cannot be told from its keys: {error}")
    if first is None:
        return Site(product.module, product.index, (), "the example is too short to tell queries from keys; give more than one token")
    left, right = ("q", "k") if first else ("k", "q")
    value = Operand("v", use.value, use.node.index, -1, -2) if use.is_left else Operand("v", use.value, use.node.index, -2, -1)
    ends = (Operand(left, factors.left, product.index, -1, -2), Operand(right, factors.right, product.index, -2, -1))
    return Site(product.module, product.index, (*ends, value))


def _queries_are_left(graph: Graph, product: Node, way: tuple[Node, ...], use: _Use) -> bool | None:
    """Whether the product's left factor holds the queries: a sum over values runs over keys, for one query."""
    out = product.outputs[0]
    nodes = stretch(graph, out, product.index, use.weights, use.node.index, through=way)
    replay = Replay(graph.tape, out, use.weights, nodes)
    with torch.enable_grad():
        leaf = replay.values().requires_grad_()
        weights = replay(leaf)
        rows = weights if use.is_left else weights.transpose(-1, -2)
        rows = rows.reshape(-1, rows.shape[-1])
        row = rows[int(rows.detach().abs().sum(-1).argmax())]
        chosen = (row * torch.randn(row.shape, generator=torch.Generator().manual_seed(0)).to(row.device)).sum()
        (grad,) = torch.autograd.grad(chosen, leaf, allow_unused=True)
    if grad is None:
        raise ReplayError("gradients stop at its softmax")
    touched = grad.as_strided(out.shape, out.stride, out.offset).abs().float()
    by_row, by_column = touched.sum(-1).flatten(), touched.sum(-2).flatten()
    most = max(float(by_row.max()), float(by_column.max()))
    down, across = int((by_row > 0.01 * most).sum()), int((by_column > 0.01 * most).sum())
    return None if down == across else across > down
