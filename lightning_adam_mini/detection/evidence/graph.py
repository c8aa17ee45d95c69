"""What the operations on a tape are to attention: maps by a weight, products, softmaxes, or something to look through."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor

from lightning_adam_mini.detection.evidence.codes import WeightCodes
from lightning_adam_mini.detection.evidence.tape import Node, Ref, Tape


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


# Where the two factors, and what is added, stand among the arguments.
_FACTORS: dict[str, tuple[int, int, int | None]] = {
    "mm": (0, 1, None),
    "bmm": (0, 1, None),
    "mv": (0, 1, None),
    "addmm": (1, 2, 0),
    "_addmm_activation": (1, 2, 0),
    "baddbmm": (1, 2, 0),
    "addmv": (1, 2, 0),
    "linear": (0, 1, 2),
    "mkldnn_linear": (0, 1, 2),
    "convolution": (0, 1, 2),
    "_convolution": (0, 1, 2),
    "cudnn_convolution": (0, 1, None),
    "mkldnn_convolution": (0, 1, 2),
}
_SOFTMAX = frozenset({"_softmax", "_safe_softmax", "softmax"})
_TABLE = frozenset({"embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"})
_HIDDEN = frozenset({"lstm", "gru", "mkldnn_rnn_layer", "_cudnn_rnn", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "miopen_rnn"})
_QUERY, _KEY, _VALUE = ("query", "q"), ("key", "k"), ("value", "v")


@dataclass(frozen=True)
class Factors:
    """The factors of a product: two activations, or an activation and a weight."""

    left: Ref
    right: Ref
    added: Ref | None


@dataclass(frozen=True)
class Walk:
    """The way back from a tensor.

    Attributes:
        inside: Operations that were looked through.
        ends: Operations where it ended.
        roots: Storages that no operation made: parameters, inputs, unknown ones.
    """

    inside: frozenset[int]
    ends: tuple[Node, ...]
    roots: frozenset[int]


class Graph:
    """A tape with the meaning of its operations."""

    def __init__(self, tape: Tape) -> None:
        """Args: the tape."""
        self.tape = tape
        self.codes = WeightCodes(tape)
        self._kinds: dict[int, Kind] = {}

    def kind(self, node: Node) -> Kind:
        """What ``node`` is."""
        if node.index not in self._kinds:
            self._kinds[node.index] = self._classify(node)
        return self._kinds[node.index]

    def _classify(self, node: Node) -> Kind:
        if attention_operands(node) is not None:
            return Kind.ATTENTION
        if node.name.startswith("higher_order::") or node.op in _HIDDEN:
            return Kind.HIDDEN
        if node.op in _SOFTMAX:
            return Kind.SOFTMAX
        if node.op in ("exp", "exp2"):
            return Kind.EXP
        if node.op in _TABLE:
            return Kind.TABLE
        factors = self.factors(node)
        if factors is None or (is_convolution(node) and factors.right.shape[1] == 1 and factors.left.shape[1] > 1):
            return Kind.PASS  # a depthwise convolution leaves each channel by itself
        if self.weight_side(node) is not None:
            return Kind.LINEAR
        if self.tape.is_constant(factors.left) or self.tape.is_constant(factors.right):
            return Kind.PASS
        return Kind.LINEAR if self._is_table(factors.left, node) or self._is_table(factors.right, node) else Kind.PRODUCT

    def _is_table(self, ref: Ref, node: Node) -> bool:
        """Whether no layer made ``ref``, only parameters that were looked up or moved: relative positions."""
        return ref.storage not in self.tape.from_input and not self.walk_back(ref, node.index).ends

    def factors(self, node: Node) -> Factors | None:
        """The factors, if ``node`` is a product."""
        places = _FACTORS.get(node.op)
        if places is None or not node.name.startswith("aten::"):
            return None
        left, right = _ref_at(node, places[0]), _ref_at(node, places[1])
        added = None if places[2] is None else _ref_at(node, places[2])
        return None if left is None or right is None else Factors(left, right, added)

    def weight_side(self, node: Node) -> str | None:
        """Which factor of a product is a weight, ``"left"`` or ``"right"``; the right one if both are."""
        factors = self.factors(node)
        if factors is None:
            return None
        if self.codes.is_weight(factors.right, node.index):
            return "right"
        return "left" if self.codes.is_weight(factors.left, node.index) else None

    def walk_back(self, ref: Ref, before: int) -> Walk:
        """From ``ref`` back through everything that is :attr:`Kind.PASS`."""
        inside: set[int] = set()
        ends: dict[int, Node] = {}
        roots: set[int] = set()
        todo = [(ref, before)]
        while todo:
            at, time = todo.pop()
            made = False
            for node in self.tape.writers(at, time):
                made = True
                if node.index in inside or node.index in ends:
                    continue
                if self.kind(node) is not Kind.PASS:
                    ends[node.index] = node
                    continue
                inside.add(node.index)
                todo += [(i, node.index) for i in node.inputs if i.is_differentiable and not self.tape.is_constant(i)]
            if not made or at.storage in self.tape.by_storage:
                roots.add(at.storage)
        return Walk(frozenset(inside), tuple(ends[i] for i in sorted(ends)), frozenset(roots))


def attention_operands(node: Node) -> tuple[Ref, Ref, Ref] | None:
    """Query, key and value of an operation that is attention as a whole: any whose name and arguments say so."""
    if node.name == "higher_order::flex_attention":
        q, k, v = node.args[:3]
        return (q, k, v) if all(isinstance(x, Ref) for x in (q, k, v)) else None
    name = node.name.lower()
    schema = getattr(node.function, "_schema", None)
    if schema is None or not ("attention" in name or "attn" in name) or "backward" in name:
        return None
    named: dict[str, Any] = dict(node.kwargs)
    named.update(zip((a.name for a in schema.arguments), node.args, strict=False))
    found = [next((named[n] for n in names if isinstance(named.get(n), Ref)), None) for names in (_QUERY, _KEY, _VALUE)]
    q, k, v = found
    return None if q is None or k is None or v is None else (q, k, v)


def is_convolution(node: Node) -> bool:
    """Whether ``node`` is a convolution."""
    return "convolution" in node.op


def _ref_at(node: Node, place: int) -> Ref | None:
    value = node.args[place] if place < len(node.args) else None
    if value is None and node.kwargs and not isinstance(value, Tensor):
        schema = getattr(node.function, "_schema", None)
        names = [a.name for a in schema.arguments] if schema is not None else []
        value = node.kwargs.get(names[place]) if place < len(names) else None
    return value if isinstance(value, Ref) else None
