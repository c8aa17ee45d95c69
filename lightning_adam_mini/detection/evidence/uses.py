"""How a forward uses its parameters, and what it does with its inputs: seen on a tape, of any network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, field, replace

from lightning_adam_mini.detection.evidence.graph import Graph, Kind, values
from lightning_adam_mini.detection.evidence.tape import Node, Ref
from lightning_adam_mini.detection.evidence.weights import factors

_LOOKED_UP = frozenset({"embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only", "index", "index_select", "gather"})
_SUMMED = frozenset({"index_add", "scatter_add", "scatter_reduce", "segment_reduce", "_segment_reduce_forward", "index_put"})
_CONDITIONS = {"mul": "scales", "add": "shifts"}
_USES = {"cat": "joined", "stack": "joined", "add": "added", "sub": "added", "mul": "scaled", "div": "scaled"}


@dataclass
class Uses:
    """What was seen of parameters and inputs.

    Attributes:
        kinds: How each parameter is used, by name: as a ``map``, as a ``table`` that indices among the inputs look up, by ``place``
            (indices that do not depend on the inputs), ``added`` to features, ``joined`` to them, or ``scaled`` by; and whether what it
            makes of one input ``scales`` or ``shifts`` features of another.
        axes: The dimension of a map's weight along which its output lines lie; None if it has several or they lie along none.
        told: Weights of the maps that read nothing but inputs of one number per sample, such as a time step.
        messages: By path of a module, what shows that it adds up features along a graph.
    """

    kinds: dict[str, set[str]] = field(default_factory=dict)
    axes: dict[str, int | None] = field(default_factory=dict)
    told: dict[str, bool] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Came:
    """What went into a storage.

    Attributes:
        inputs: The numbers of inputs.
        weights: The numbers of parameters, as far as they are what it is made of.
        by: The numbers of the weights of the last maps.
        mapped: Whether maps did.
        looked_up: Whether it was looked up in features along an input.
        coded: Whether a table did.
    """

    inputs: frozenset[int] = frozenset()
    weights: frozenset[int] = frozenset()
    by: frozenset[int] = frozenset()
    mapped: bool = False
    looked_up: bool = False
    coded: bool = False

    def __or__(self, other: _Came) -> _Came:
        return _Came(*(one | two for one, two in zip(astuple(self), astuple(other), strict=True)))


def find_uses(graph: Graph) -> Uses:
    """Read the tape of ``graph`` from its beginning to its end."""
    return _Reader(graph).read()


class _Reader:
    def __init__(self, graph: Graph) -> None:
        self._graph, self._tape = graph, graph.tape
        self._came: dict[int, _Came] = {storage: _Came(weights=frozenset(held)) for storage, held in graph.tape.by_storage.items()}
        for number, ref in enumerate(graph.tape.given):
            if ref is not None:
                self._came[ref.storage] = self._of([ref]) | _Came(frozenset({number}))
        self._uses = Uses()

    def read(self) -> Uses:
        for node in self._tape.nodes:
            came = self._of(values(node))
            op = node.op.rstrip("_")
            kind = self._graph.kind(node)
            if kind is Kind.LINEAR:
                came = replace(self._map(node), mapped=True)
            elif op in _LOOKED_UP:
                came |= self._look_up(node)
            elif any(self._is_features(ref) and not self._is_told(self._of([ref])) for ref in node.inputs):
                self._condition(node, _CONDITIONS.get(op, ""))
                self._use(_USES.get(op, "joined" if kind is Kind.ATTENTION else ""), filter(self._is_weight, node.inputs))
            if (kind is Kind.PRODUCT or op in _SUMMED) and (message := self._message(node, op)):
                self._uses.messages.setdefault(node.module, message)
            for ref in (*node.outputs, *node.written):
                self._came[ref.storage] = self._came.get(ref.storage, _Came()) | came
        return self._uses

    def _of(self, refs: Iterable[Ref]) -> _Came:
        came = _Came()
        for ref in refs:
            came |= self._came.get(ref.storage, _Came())
        return came

    def _is_features(self, ref: Ref) -> bool:
        return ref.is_differentiable and bool(self._of([ref]).inputs)

    def _is_weight(self, ref: Ref) -> bool:
        came = self._of([ref])
        return bool(came.weights) and not came.inputs

    def _use(self, kind: str, refs: Iterable[Ref]) -> None:
        for number in self._of(refs).weights if kind else ():
            self._uses.kinds.setdefault(self._tape.weights[number][0], set()).add(kind)

    def _is_told(self, came: _Came) -> bool:
        """Whether nothing but inputs of one number per sample went into it."""
        refs = [self._tape.given[number] for number in came.inputs]
        return bool(refs) and not came.coded and all(ref is not None and len(ref.shape) == 1 for ref in refs)

    def _condition(self, node: Node, kind: str) -> None:
        """Vectors that are made of inputs with fewer dimensions than those of the features, for all places of these."""
        pair = [ref for ref in node.inputs if self._is_features(ref)] if kind else []
        for vector, features in (pair, pair[::-1]) if len(pair) == 2 else ():
            one, other = self._of([vector]), self._of([features])
            sizes = (*[1] * (len(features.shape) - len(vector.shape)), *vector.shape)
            repeated = [size for size, own in zip(features.shape, sizes, strict=False) if own == 1 < size]
            if one.by and (other.mapped or other.coded) and repeated and self._depth(one) < self._depth(other):
                for number in one.by:
                    self._uses.kinds.setdefault(self._tape.weights[number][0], set()).add(kind)

    def _depth(self, came: _Came) -> int:
        """The most dimensions of the inputs that went into it."""
        return max((len(ref.shape) for number in came.inputs if (ref := self._tape.given[number]) is not None), default=0)

    def _map(self, node: Node) -> _Came:
        both = factors(node) or ()
        self._use("map", filter(self._is_weight, both))
        data = self._of(ref for ref in both if not self._is_weight(ref))
        told, weights = self._is_told(data), self._of(filter(self._is_weight, both)).weights
        for number in weights:
            name = self._tape.weights[number][0]
            self._uses.told[name] = told and self._uses.told.get(name, True)
            axis = self._axis(node, number)
            self._uses.axes[name] = axis if self._uses.axes.get(name, axis) == axis else None
        return _Came(data.inputs, by=weights, coded=data.coded)

    def _axis(self, node: Node, number: int) -> int | None:
        linear = self._graph.linear(node)
        found = [] if linear is None else self._graph.weights.elements(linear.starts)
        places = [element[1] for element in found if element is not None and element[0] == number]
        varied = [dim for dim, at in enumerate(zip(*places, strict=True)) if len(set(at)) > 1]
        return varied[0] if len(varied) == 1 else None

    def _look_up(self, node: Node) -> _Came:
        indices = [ref for ref in node.inputs if not ref.is_differentiable]
        along = self._of(indices)
        self._use("table" if along.inputs else "place", filter(self._is_weight, node.inputs))
        given = bool(along.inputs) and not along.mapped
        return _Came(coded=any(map(self._is_weight, node.inputs)), looked_up=given and any(self._is_features(ref) for ref in node.inputs))

    def _message(self, node: Node, op: str) -> str | None:
        if op in _SUMMED:
            if op == "index_put" and not node.named.get("accumulate"):
                return None
            along = self._of(ref for ref in node.inputs if not ref.is_differentiable)
            source = self._of(ref for ref in node.inputs if ref.is_differentiable)
            is_given = bool(along.inputs) and not along.mapped
            return "adds up along given indices what it looked up by others" if is_given and source.looked_up and source.mapped else None
        both = factors(node) or ()
        for matrix, features in (both, both[::-1]) if len(both) == 2 else ():
            came = self._of([matrix])
            given = [self._tape.given[number] for number in came.inputs]
            is_square = len(matrix.shape) >= 2 and matrix.shape[-1] == matrix.shape[-2] > 1
            is_graph = all(ref is not None and 2 <= len(ref.shape) <= 3 and ref.shape[-1] == ref.shape[-2] for ref in given)
            if given and is_square and is_graph and not came.mapped and not came.weights and self._of([features]).mapped:
                return "multiplies features by a square matrix that it is given"
        return None
