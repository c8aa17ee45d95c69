"""What the operations on a tape are to attention: maps by a weight, products, softmaxes, or something to look through."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable
from enum import Enum
from math import inf, prod
from typing import NamedTuple, TypeVar, cast

from lightning_adam_mini.detection.evidence.tape import Node, Ref, Tape
from lightning_adam_mini.detection.evidence.weights import Linear, Weights, factors, is_convolution

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Kind(Enum):
    """What an operation is to attention. All but ``PASS`` end the way back from a query to the layer that made it."""

    LINEAR = "a map by a weight"
    PRODUCT = "a product of two activations"
    ATTENTION = "attention in one operation"
    SOFTMAX = "a softmax"
    EXP = "an exponential"
    TABLE = "a table lookup"
    HIDDEN = "an operation that cannot be looked into"
    PASS = "something to look through"


_KINDS = {
    **dict.fromkeys(("_softmax", "_safe_softmax", "softmax"), Kind.SOFTMAX),
    **dict.fromkeys(("exp", "exp2"), Kind.EXP),
    **dict.fromkeys(("embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"), Kind.TABLE),
    **dict.fromkeys(("lstm", "gru", "mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn"), Kind.HIDDEN),
    **dict.fromkeys(("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell"), Kind.HIDDEN),
}
_INPUT, _WEIGHT = 1, 2  # bits of what went into a storage; each map by a weight has one more

_FEW = 3  # maps that feed one; more of them are a stream of features
_NEAR = 16  # maps after an attention, among which the one is that reads it


class Walk(NamedTuple):
    """The way back from a tensor: operations that were looked through, and those where it ended, both in order."""

    inside: tuple[Node, ...]
    ends: tuple[Node, ...]


class Graph:
    """A tape with the meaning of its operations.

    Attributes:
        tape: The tape.
        weights: The parameters on it.
        products: Paths of modules that multiply what maps give by products of such.
    """

    def __init__(self, tape: Tape) -> None:
        """Args: the tape."""
        self.tape = tape
        self._activations = set(tape.inputs)
        self.weights: Weights = Weights(tape, self._activations)
        self._made_by = dict.fromkeys(tape.by_storage, _WEIGHT) | dict.fromkeys(tape.inputs, _INPUT)
        self._kinds: list[Kind] = []
        self._bits: dict[int, int] = {}
        self._fed: dict[int, int] = {}
        self._soft: dict[int, int] = {}
        self._multiplied: dict[int, int] = {}
        self._weighing = 0
        self.products: dict[str, None] = {}
        self._known: dict[object, object] = {}
        for node in tape.nodes:
            self._add(node)
        self._maps = list(self._fed)

    def _add(self, node: Node) -> None:
        try:
            kind = self._classify(node)
        except Exception:
            _log.debug("%s in %s is not understood", node.name, node.module, exc_info=True)
            kind = Kind.HIDDEN
            self.tape.unknown.update({ref.storage: node.module for ref in (*node.outputs, *node.written)})
        self._kinds.append(kind)
        made_by = 0
        for ref in values(node):
            made_by |= self._made_by.get(ref.storage, 0)
        if kind in (Kind.LINEAR, Kind.HIDDEN):
            self._fed[node.index] = made_by
            self._bits[node.index] = 4 << len(self._bits)
            made_by |= self._bits[node.index]
        self._note_products(node, kind, made_by)
        for ref in (*node.outputs, *node.written):
            # What is chosen by the numbers of a map, such as the best places, is not made of them.
            bits = made_by if ref.is_differentiable else made_by & (_INPUT | _WEIGHT)
            self._made_by[ref.storage] = self._made_by.get(ref.storage, 0) | bits
            if made_by & _INPUT:
                self._activations.add(ref.storage)

    def _note_products(self, node: Node, kind: Kind, made_by: int) -> None:
        """Maps whose results weigh by a softmax, or go into a product of products, are read by these as by another map."""
        soft = made_by if kind is Kind.SOFTMAX else 0
        multiplied = made_by if kind is Kind.PRODUCT else 0
        if kind is Kind.PASS and len(node.inputs) == 1:
            soft = self._soft.get(node.inputs[0].storage, 0)
        for ref in node.inputs:
            before = self._multiplied.get(ref.storage, 0) if ref.is_differentiable else 0
            multiplied |= before
            # Weights of a mean stand for several numbers; as many numbers as there are others are scaled themselves.
            is_weight = node.op == "mul" and prod(ref.shape) < prod(node.outputs[0].shape if node.outputs else ref.shape)
            if kind is Kind.PRODUCT or is_weight:
                self._weighing |= self._soft.get(ref.storage, 0)
            if kind is Kind.PRODUCT and before:
                self._weighing |= before
                self.products.setdefault(node.module)
        for ref in (*node.outputs, *node.written):
            self._soft[ref.storage], self._multiplied[ref.storage] = soft, multiplied

    def kind(self, node: Node) -> Kind:
        """What ``node`` is."""
        return self._kinds[node.index]

    def _classify(self, node: Node) -> Kind:
        if operands(node) is not None:
            return Kind.ATTENTION
        if node.name.startswith("higher_order::"):
            return Kind.HIDDEN
        both = factors(node)
        if both is None or (is_convolution(node) and both[1].shape[1] == 1 and both[0].shape[1] > 1):
            return _KINDS.get(node.op, Kind.PASS)  # a depthwise convolution leaves each channel by itself
        if self.weights.side(node) is not None:
            return Kind.LINEAR
        if any(self.is_constant(ref) for ref in both):
            return Kind.PASS
        return Kind.LINEAR if any(self._is_table(ref, node) for ref in both) else Kind.PRODUCT

    def _is_table(self, ref: Ref, node: Node) -> bool:
        """Whether no layer made ``ref``, only parameters that were looked up or moved: relative positions."""
        return not self._made_by[ref.storage] & _INPUT and not self.walk(ref, node.index).ends

    def is_constant(self, ref: Ref) -> bool:
        """Whether neither inputs nor parameters went into it."""
        return not self._made_by.get(ref.storage)

    def linear(self, node: Node) -> Linear | None:
        """The map by a weight that ``node`` is; None if the lines of its weight are not known."""
        return self.once(("linear", node), lambda: self.weights.linear(node))

    def once(self, key: object, find: Callable[[], _T]) -> _T:
        """What ``find`` finds, which is the same wherever ``key`` is."""
        if key not in self._known:
            self._known[key] = find()
        return cast("_T", self._known[key])

    def between(self, node: Node, last: Collection[Node]) -> list[Node]:
        """The maps by a weight that the map ``node`` feeds and that are, or feed, one of the maps ``last``."""
        until, bit = max(other.index for other in last), self._bits[node.index]
        found = []
        for index in self._maps[bisect_right(self._maps, node.index) : bisect_right(self._maps, until)]:
            leads = any(index == other.index or self._fed[other.index] & self._bits[index] for other in last)
            if leads and self._fed[index] & bit and self._kinds[index] is Kind.LINEAR:
                found.append(self.tape.nodes[index])
        return found

    def readers(self, node: Node) -> tuple[str, ...]:
        """The weights of the first map that reads what ``node`` gives, with nothing but operations to look through between."""
        for index in self._maps[bisect_right(self._maps, node.index) :][:_NEAR]:
            linear = self.linear(self.tape.nodes[index]) if self._kinds[index] is Kind.LINEAR else None
            if linear is not None and node in self.walk(linear.data, index).ends:
                return self._names([self.tape.nodes[index]])
        return ()

    def ends(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The weights whose maps all feed another map, or weigh by a softmax, and those of which none does."""
        fed = self._weighing
        for bits in self._fed.values():
            fed |= bits
        maps = [self.tape.nodes[index] for index in self._maps if self._kinds[index] is Kind.LINEAR]
        read, unread = (self._names(node for node in maps if bool(fed & self._bits[node.index]) is is_read) for is_read in (True, False))
        return tuple(n for n in read if n not in unread), tuple(n for n in unread if n not in read)

    def feeds(self) -> dict[str, tuple[str, ...]]:
        """The weight of each map that nothing but one to three others feed, and theirs; none if another use has others."""
        found: dict[str, tuple[str, ...]] = {}
        for index in self._maps:
            if self.tape.is_late():
                return {}
            linear = self.linear(self.tape.nodes[index]) if self._kinds[index] is Kind.LINEAR else None
            ends = () if linear is None else self._walk(linear.data, index, frozenset(), _FEW).ends
            if 0 < len(ends) <= _FEW and all(self.kind(end) is Kind.LINEAR for end in ends):
                by = self._names(ends)
                found |= {name: by if found.get(name, by) == by else () for name in self._names([self.tape.nodes[index]])}
        return found

    def _names(self, maps: Iterable[Node]) -> tuple[str, ...]:
        starts = [linear.starts for linear in map(self.linear, maps) if linear is not None]
        elements = [element for codes in starts for element in self.weights.elements(codes) if element is not None]
        return tuple(self.tape.weights[number][0] for number in dict.fromkeys(number for number, _ in elements))

    def walk(self, ref: Ref, before: int, through: frozenset[Node] = frozenset()) -> Walk:
        """From ``ref`` back through everything that is :attr:`Kind.PASS`, and ``through`` some operations that are not."""
        return self.once(("walk", ref, before, through), lambda: self._walk(ref, before, through))

    def _walk(self, ref: Ref, before: int, through: frozenset[Node], most: float = inf) -> Walk:
        inside: dict[int, Node] = {}
        ends: dict[int, Node] = {}
        todo = [(ref, before)]
        while todo and len(ends) <= most:
            at, time = todo.pop()
            for node in self.tape.writers(at, time):
                if node.index in inside or node.index in ends:
                    continue
                if self.kind(node) is not Kind.PASS and node not in through:
                    ends[node.index] = node
                    continue
                inside[node.index] = node
                todo += [(i, node.index) for i in node.inputs if i.is_differentiable and not self.is_constant(i)]
        return Walk(*(tuple(found[i] for i in sorted(found)) for found in (inside, ends)))


def values(node: Node) -> tuple[Ref, ...]:
    """The tensors whose values ``node`` takes, and not only their shapes."""
    return () if node.op.endswith("_like") or node.op.startswith(("new_", "empty", "zero_")) else node.inputs


def operands(node: Node) -> tuple[Ref, Ref, Ref] | None:
    """Query, key and value of an operation that is attention as a whole: any whose name and arguments say so."""
    if node.name == "higher_order::flex_attention":
        found = [ref if isinstance(ref, Ref) else None for ref in node.args[:3]]
    elif ("attention" in node.name or "attn" in node.name) and "backward" not in node.name:
        found = [node.first("query", "q"), node.first("key", "k"), node.first("value", "v")]
    else:
        return None
    q, k, v = found
    return None if q is None or k is None or v is None else (q, k, v)
