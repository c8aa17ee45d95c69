"""Where attention is computed: one operation that is attention as a whole, or two products with a softmax between them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini.detection.evidence.graph import Graph, Kind, Walk, operands
from lightning_adam_mini.detection.evidence.heads import Operand
from lightning_adam_mini.detection.evidence.replay import Replay, ReplayError, plainly
from lightning_adam_mini.detection.evidence.tape import Node, Ref
from lightning_adam_mini.detection.evidence.weights import factors

_log = logging.getLogger(__name__)
_SHIFT = 2  # queries that one row of the softmax may come from: two where relative positions are shifted into place
_ROWS = 8  # rows of the softmax to look at


class Site(NamedTuple):
    """One attention: its operands, or why they are not known."""

    module: str
    operands: tuple[Operand, ...]
    problem: str | None = None


def find_sites(graph: Graph) -> Iterator[Site]:
    """All attentions, in order."""
    softmaxes: set[Node] = set()
    uses: set[Node] = set()
    for look in (_used, _unused):  # every use first
        for node in graph.tape.nodes:
            try:
                yield from look(graph, node, softmaxes, uses)
            except Exception as error:
                _log.debug("attention in %s is not understood", node.module, exc_info=True)
                yield Site(node.module, (), f"{type(error).__name__} while it was read")


def _used(graph: Graph, node: Node, met: set[Node], uses: set[Node]) -> Iterator[Site]:
    """The attentions that ``node`` is, or is the end of."""
    whole = operands(node)
    if whole is not None:
        yield Site(node.module, tuple(Operand(role, ref, node.index, -1, -2) for role, ref in zip("qkv", whole, strict=True)))
    elif graph.kind(node) is Kind.PRODUCT:
        yield from _around(graph, node, met, uses)


def _unused(graph: Graph, node: Node, met: set[Node], uses: set[Node]) -> Iterator[Site]:
    """``node``, if it makes weights of products that no value was seen to be weighed by."""
    if graph.kind(node) is Kind.SOFTMAX and node not in met and _behind(graph, _weighed(node), node, (Kind.PRODUCT,))[1]:
        yield Site(node.module, (), "what its weights are for was not seen")


def _around(graph: Graph, use: Node, met: set[Node], uses: set[Node]) -> Iterator[Site]:
    """The attentions of which ``use`` is the product of weights and values."""
    both = factors(use)
    assert both is not None
    left, right = both
    for weights, value in ((left, Operand("v", right, use.index, -1, -2)), (right, Operand("v", left, use.index, -2, -1))):
        mixes, softmaxes = _behind(graph, weights, use, (Kind.SOFTMAX, Kind.EXP))
        for softmax in softmaxes:
            source = _weighed(softmax)
            if graph.is_constant(source):
                continue
            if softmax in met:  # the same weights once more, of other values
                yield Site(use.module, (value,))
                continue
            before, products = _behind(graph, source, softmax, (Kind.PRODUCT,))
            products = [node for node in products if node not in uses]
            if products or graph.kind(softmax) is Kind.SOFTMAX:
                uses.add(use)
            if products:
                met.add(softmax)
                way = graph.walk(weights, use.index, frozenset({softmax, *mixes, *before}))
                yield from _scored(graph, products, way, weights, value)
            elif graph.kind(softmax) is Kind.SOFTMAX:
                yield Site(softmax.module, (), "what its softmax weighs are not products of queries and keys")


def _weighed(softmax: Node) -> Ref:
    """What a softmax, or an exponential, is of."""
    return next(a for a in (*softmax.args, *softmax.kwargs.values()) if isinstance(a, Ref))


def _behind(graph: Graph, ref: Ref, reader: Node, kinds: Sequence[Kind]) -> tuple[list[Node], list[Node]]:
    """Operations of these kinds that ``ref`` comes from, at most one map by a weight away (heads that talk); these maps come first."""
    found: dict[Node, None] = {}
    mixes: list[Node] = []
    for end in graph.walk(ref, reader.index).ends:
        linear = graph.linear(end) if graph.kind(end) is Kind.LINEAR else None
        behind = graph.walk(linear.data, end.index).ends if linear is not None else (end,)
        if behind and all(graph.kind(node) in kinds for node in behind):
            mixes += [end] if linear is not None else []
            found |= dict.fromkeys(behind)
    return mixes, list(found)


def _scored(graph: Graph, products: Sequence[Node], way: Walk, weights: Ref, value: Operand) -> Iterator[Site]:
    """The attentions of which ``products`` are scores: more than one where queries and keys are also compared with positions."""
    outs, is_left = [product.outputs[0] for product in products], value.vector == -1
    key = (plainly(way.inside, weights, *outs), is_left)
    told = dict(zip(products, graph.once(key, lambda: _rows_are_queries(graph, outs, way, weights, is_left)), strict=True))
    met: dict[Node, set[str]] = {}  # roles of the layers behind factors that were told apart
    for product in sorted(products, key=lambda p: isinstance(told[p], str)):
        both, answer = factors(product), told[product]
        assert both is not None
        makers = [[end for end in graph.walk(ref, product.index).ends if graph.kind(end) is Kind.LINEAR] for ref in both]
        if isinstance(answer, str):
            roles = [{role for maker in some for role in met.get(maker, ())} for some in makers]
            if sum(map(len, roles)) != 1:  # not just one factor has been met
                yield Site(product.module, (), f"its queries cannot be told from its keys: {answer}")
                continue
            answer = roles[0] == {"q"} or roles[1] == {"k"}
        names = "qk" if answer else "kq"
        for some, role in zip(makers, names, strict=True):
            for maker in some:
                met.setdefault(maker, set()).add(role)
        ends = (Operand(names[0], both[0], product.index, -1, -2), Operand(names[1], both[1], product.index, -2, -1))
        yield Site(product.module, (*ends, value))


def _rows_are_queries(graph: Graph, outs: Sequence[Ref], way: Walk, weights: Ref, is_left: bool) -> list[bool | str]:
    """For each product whether its left factor holds the queries, or why that cannot be told.

    The sum over values, for one query, runs over keys: a row of the weights that are summed over depends on one query and all keys. What
    it depends on is seen from a gradient, not from sizes, which may be equal by chance.
    """
    if min(len(ref.shape) for ref in (weights, *outs)) < 2:
        return ["its products are of single vectors"] * len(outs)
    try:
        replay = Replay(graph.tape, outs, weights, way)
        with torch.enable_grad():
            rows = (replay.out if is_left else replay.out.transpose(-1, -2)).reshape(-1, weights.shape[-1 if is_left else -2])
            some = [rows[at] for at in torch.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).long().tolist()]
        return [_tell([replay.gradient(row, out).reshape(-1, *out.shape[-2:]).sum(0) for row in some]) for out in outs]
    except ReplayError as error:
        return [str(error)] * len(outs)


def _tell(touched: Sequence[Tensor]) -> bool | str:
    """From what a few rows depend on: whether they run across the product."""
    counts = [tuple(int((sums > 0.01 * sums.max()).sum()) for sums in (t.sum(-1), t.sum(-2))) for t in touched]
    down, across = max(counts, key=sum)
    if min(down, across) > _SHIFT:
        return "what its softmax weighs mixes several queries and several keys"
    return across > down if across != down else "the example is too short; give more than one token"
