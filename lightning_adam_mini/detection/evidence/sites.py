"""Where attention is computed: one operation that is attention as a whole, or two products with a softmax between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lightning_adam_mini.detection.evidence.graph import Factors, Graph, Kind, attention_operands
from lightning_adam_mini.detection.evidence.heads import Operand
from lightning_adam_mini.detection.evidence.orientation import Scores, ValueUse, queries_are_left
from lightning_adam_mini.detection.evidence.replay import ReplayError
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
    products = list(_score_products(graph, source, node))
    if not products and kind is Kind.SOFTMAX:
        yield Site(node.module, node.index, (), "what its softmax weighs are not products of queries and keys")
    open_: list[tuple[Node, str]] = []
    roles: dict[int, set[str]] = {}  # of the layers that made the factors of the products which were told apart
    for product, way in products:
        factors = graph.factors(product)
        assert factors is not None
        if min(len(ref.shape) for ref in (factors.left, factors.right, use.value)) < 2:
            open_.append((product, "its products are of single vectors"))
            continue
        try:
            is_left = queries_are_left(graph, Scores(product, node, source, way, use))
        except ReplayError as error:
            open_.append((product, str(error)))
            continue
        for ref, role in ((factors.left, "q" if is_left else "k"), (factors.right, "k" if is_left else "q")):
            for maker in _makers(graph, ref, product):
                roles.setdefault(maker, set()).add(role)
        yield _site(product, factors, use, is_left)
    for product, problem in open_:
        factors = graph.factors(product)
        assert factors is not None
        # Where queries and keys are also compared with positions, one factor of that product has been met before.
        left = {role for i in _makers(graph, factors.left, product) for role in roles.get(i, ())}
        right = {role for i in _makers(graph, factors.right, product) for role in roles.get(i, ())}
        if len(left) + len(right) == 1:
            yield _site(product, factors, use, left == {"q"} or right == {"k"})
        else:
            yield Site(product.module, product.index, (), f"its queries cannot be told from its keys: {problem}")


def _makers(graph: Graph, ref: Ref, product: Node) -> list[int]:
    return [end.index for end in graph.walk_back(ref, product.index).ends if graph.kind(end) is Kind.LINEAR]


def _site(product: Node, factors: Factors, use: ValueUse, is_left: bool) -> Site:
    left, right = ("q", "k") if is_left else ("k", "q")
    value = Operand("v", use.value, use.node.index, -1, -2) if use.is_left else Operand("v", use.value, use.node.index, -2, -1)
    ends = (Operand(left, factors.left, product.index, -1, -2), Operand(right, factors.right, product.index, -2, -1))
    return Site(product.module, product.index, (*ends, value))


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


def _value_product(graph: Graph, softmax: Node) -> ValueUse | None:
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
                return ValueUse(node, factors.left if is_left else factors.right, value, way, is_left)
            if kind is Kind.PASS or (kind is Kind.LINEAR and len(way) < _MIXES):
                on = (*way, node) if kind is Kind.LINEAR else way
                todo += [(ref.storage, node.index, on) for ref in (*node.outputs, *node.written) if ref.is_differentiable]
    return None
