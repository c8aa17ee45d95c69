"""What a forward showed of any network: what its layers give to each other, how it uses its parameters, what it does with its inputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

from lightning_adam_mini.detection.evidence.evidence import Whole
from lightning_adam_mini.detection.evidence.graph import Graph, Kind, values
from lightning_adam_mini.detection.evidence.tape import Node, Ref
from lightning_adam_mini.detection.evidence.weights import factors, is_convolution

_LOOKED_UP = frozenset({"embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only", "index", "index_select", "gather"})
_SUMMED = frozenset({"index_add", "scatter_add", "scatter_reduce", "segment_reduce", "_segment_reduce_forward", "index_put"})
_CONDITIONS = {"mul": "scales", "add": "shifts"}
_USES = {"cat": "joined", "stack": "joined", "add": "added", "sub": "added", "mul": "scaled", "div": "scaled"}


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
        return _Came(
            self.inputs | other.inputs,
            self.weights | other.weights,
            self.by | other.by,
            self.mapped or other.mapped,
            self.looked_up or other.looked_up,
            self.coded or other.coded,
        )


def find_whole(graph: Graph) -> Whole:
    """Read the tape of ``graph`` from its beginning to its end."""
    return _Reader(graph).read()


class _Reader:
    def __init__(self, graph: Graph) -> None:
        self._graph, self._tape = graph, graph.tape
        self._came: dict[int, _Came] = {storage: _Came(weights=frozenset(held)) for storage, held in graph.tape.by_storage.items()}
        for number, ref in enumerate(graph.tape.given):
            if ref is not None:
                self._came[ref.storage] = self._of([ref]) | _Came(frozenset({number}))
        self._uses: defaultdict[str, set[str]] = defaultdict(set)
        self._axes: dict[str, int | None] = {}
        self._told: dict[str, bool] = {}
        self._messages: dict[str, str] = {}
        self._joined: dict[str, None] = {}
        self._fewest: dict[int, int] = {}  # places in the smallest map of them that went into a storage

    def read(self) -> Whole:
        for node in self._tape.nodes:
            if self._tape.is_late():
                return Whole()
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
                self._messages.setdefault(node.module, message)
            self._join(node, op, came)
            for ref in (*node.outputs, *node.written):
                self._came[ref.storage] = self._came.get(ref.storage, _Came()) | came
        (read, unread), fed = self._graph.ends(), self._graph.feeds()
        if self._tape.is_late():
            return Whole()
        return Whole(
            read=read,
            unread=unread,
            fed=tuple(fed.items()),
            uses=tuple((name, tuple(sorted(kinds))) for name, kinds in self._uses.items()),
            axes=tuple((name, axis) for name, axis in self._axes.items() if axis is not None),
            told=tuple(name for name, is_told in self._told.items() if is_told),
            messages=tuple(self._messages.items()),
            joined=tuple(self._joined),
            products=tuple(self._graph.products),
        )

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
            self._uses[self._tape.weights[number][0]].add(kind)

    def _join(self, node: Node, op: str, came: _Came) -> None:
        if self._is_told(came):
            return
        held = [(ref, self._fewest[ref.storage]) for ref in node.inputs if ref.storage in self._fewest]
        choose = max if self._graph.kind(node) is Kind.PRODUCT else min  # keys may be of fewer places than queries
        fewest = choose((places for _, places in held), default=0)
        if is_convolution(node) and len(node.outputs[0].shape) > 2:
            fewest = min(prod(node.outputs[0].shape[2:]), fewest or prod(node.outputs[0].shape[2:]))
        elif op in ("cat", "add") and len({ref.shape[2:] for ref, _ in held}) == 1 and held[0][0].shape[2:]:
            here = prod(held[0][0].shape[2:])
            if any(places == here for _, places in held) and fewest < here:
                self._joined[node.module] = None
        if fewest:
            self._fewest |= dict.fromkeys((ref.storage for ref in (*node.outputs, *node.written)), fewest)

    def _is_told(self, came: _Came) -> bool:
        """Whether nothing but inputs of one number per sample went into it."""
        refs = [self._tape.given[number] for number in came.inputs]
        return bool(refs) and not came.coded and all(ref is not None and len(ref.shape) == 1 for ref in refs)

    def _condition(self, node: Node, kind: str) -> None:
        """Vectors that are not made of all the inputs with most dimensions that the features are made of, for all places of these."""
        pair = [ref for ref in node.inputs if self._is_features(ref)] if kind else []
        for vector, features in (pair, pair[::-1]) if len(pair) == 2 else ():
            one, other = self._of([vector]), self._of([features])
            sizes = (*[1] * (len(features.shape) - len(vector.shape)), *vector.shape)
            repeated = [size for size, own in zip(features.shape, sizes, strict=False) if own == 1 < size]
            if one.by and (other.mapped or other.coded) and repeated and self._is_told_by(other, one):
                for number in one.by:
                    self._uses[self._tape.weights[number][0]].add(kind)

    def _depths(self, came: _Came) -> dict[int, int]:
        """How many dimensions its inputs have."""
        return {number: len(ref.shape) for number in came.inputs if (ref := self._tape.given[number]) is not None}

    def _is_told_by(self, features: _Came, vector: _Came) -> bool:
        """Whether ``vector`` is made of no deeper inputs than ``features``, and not of all that are as deep."""
        own, depths = self._depths(vector), self._depths(features)
        deepest = max(depths.values(), default=0)
        return max(own.values(), default=0) <= deepest and any(depths[number] == deepest and number not in own for number in depths)

    def _map(self, node: Node) -> _Came:
        both = factors(node) or ()
        self._use("map", filter(self._is_weight, both))
        data = self._of(ref for ref in both if not self._is_weight(ref))
        told, weights = self._is_told(data), self._of(filter(self._is_weight, both)).weights
        for number in weights:
            name = self._tape.weights[number][0]
            self._told[name] = told and self._told.get(name, True)
            axis = self._axis(node, number)
            self._axes[name] = axis if self._axes.get(name, axis) == axis else None
        return _Came(data.inputs, by=weights, looked_up=data.looked_up, coded=data.coded)

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
        given, held = bool(along.inputs) and not along.mapped, self._of(filter(self._is_features, node.inputs))
        if given and self._is_counted(along) and held.looked_up and held.mapped:
            self._messages.setdefault(node.module, "looks up along given indices what it made of features that it looked up")
        return _Came(coded=any(map(self._is_weight, node.inputs)), looked_up=given and any(self._is_features(ref) for ref in node.inputs))

    def _is_counted(self, came: _Came) -> bool:
        """Whether only whole numbers among the inputs went into it, and no places in space."""
        return not any(ref is not None and ref.is_differentiable for ref in map(self._tape.given.__getitem__, came.inputs))

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
