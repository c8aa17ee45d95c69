"""Which lines of a layer's output feed which head of a query, key or value.

A *slot* is one vector of the operand: the query of one token and one head. One vector-Jacobian product of a slot gives the lines that
feed it: a head. Disturbing these lines gives all slots of that head, so that one product a head is enough, wherever the heads lie in the
operand: in a batch dimension, among the tokens (multi-query attention by einsum), in windows.

Where each slot has a single line, the operand's vectors run along tokens instead of channels (cross-covariance attention, XCA). Then a
head is what the product's batch dimensions hold together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_adam_mini.detection.evidence.graph import Graph
from lightning_adam_mini.detection.evidence.linear import LinearMap
from lightning_adam_mini.detection.evidence.replay import Replay, ReplayError, stretch
from lightning_adam_mini.detection.evidence.tape import Node, Ref

_WEAK = 0.16  # of the strongest: what is below is a leak (a mean over all heads), not a part of the head
_MOST_HEADS = 1024
_ONE_TO_ONE = frozenset(
    {"clone", "_to_copy", "cat", "stack", "constant_pad_nd", "roll", "index", "index_select", "mul", "div", "add", "sub"}
)


@dataclass(frozen=True)
class Operand:
    """A query, key or value as attention reads it.

    Attributes:
        role: ``q``, ``k`` or ``v``.
        ref: The tensor.
        before: The operation that reads it.
        vector: The dimension along which a query is compared with a key, or in which a value has its features.
        token: The dimension of the tokens. The other dimensions are heads and batches.
    """

    role: str
    ref: Ref
    before: int
    vector: int
    token: int


@dataclass(frozen=True)
class HeadLines:
    """The heads found: the lines of each, and whether the operand's vectors run along tokens."""

    heads: tuple[frozenset[int], ...]
    along_tokens: bool


class HeadTracer:
    """Finds heads, each kind of stretch once."""

    def __init__(self, graph: Graph) -> None:
        """Args: the graph."""
        self._graph = graph
        self._known: dict[object, tuple[HeadLines | ReplayError, str]] = {}

    def trace(self, linear: LinearMap, operand: Operand) -> tuple[HeadLines, str]:
        """The heads of ``operand`` that ``linear`` makes, and the module where the same operations were traced.

        Raises:
            ReplayError: If they cannot be found.
        """
        nodes = stretch(self._graph, linear.out, linear.node.index, operand.ref, operand.before)
        key = _signature(linear, operand, nodes)
        if key not in self._known:
            try:
                found: HeadLines | ReplayError = self._trace(linear, operand, nodes)
            except ReplayError as error:
                found = error
            self._known[key] = (found, linear.node.module)
        found, where = self._known[key]
        if isinstance(found, ReplayError):
            raise found
        return found, where

    def _trace(self, linear: LinearMap, operand: Operand, nodes: Sequence[Node]) -> HeadLines:
        replay = Replay(self._graph.tape, linear.out, operand.ref, nodes)
        search = _Search(replay, linear, _is_one_to_one(linear, nodes))
        heads = search.run(lambda t: t.movedim(operand.vector, -1), alone=False)
        if heads is not None:
            return HeadLines(tuple(heads), False)
        heads = search.run(lambda t: t.movedim((operand.token, operand.vector), (-2, -1)).flatten(-2), alone=True)
        return HeadLines(tuple(heads or ()), True)


class _Search:
    """One operand and one layer: which slots hang on which lines."""

    def __init__(self, replay: Replay, linear: LinearMap, one_to_one: bool) -> None:
        self._replay = replay
        self._places = linear.places.to(replay.device)
        self._lines = linear.codes.numel()
        self._one_to_one = one_to_one
        self._start = replay.values()
        self._noise = torch.rand(self._start.shape, device=self._start.device).to(self._start)
        with torch.enable_grad():
            self._leaf = self._start.clone().requires_grad_()
            self._out = replay(self._leaf)
        if not self._out.requires_grad:
            raise ReplayError("gradients stop on the way to it")

    def run(self, arrange: Callable[[Tensor], Tensor], alone: bool) -> list[frozenset[int]] | None:
        """The heads; None if a slot has a single line and ``alone`` is false.

        Args:
            arrange: Gives the operand with a slot's elements in its last dimension.
            alone: Whether a slot may have a single line.
        """
        with torch.enable_grad():
            slots = arrange(self._out)
        rest = self._moved(slots, arrange, torch.ones(self._lines, dtype=torch.bool, device=self._places.device))
        heads: list[frozenset[int]] = []
        taken = torch.zeros(self._lines, dtype=torch.bool, device=self._places.device)
        while bool(rest.any()):
            slot = tuple(rest.nonzero()[0].tolist())
            rest[slot] = False
            fed = self._feeding(slots, slot)
            lines = frozenset(fed.nonzero().flatten().tolist())
            if len(lines) == 1 and self._lines > 1 and not alone:
                return None
            if not lines or lines in heads:
                continue
            if bool((taken & fed).any()):
                raise ReplayError("some of its lines feed several heads")
            taken |= fed
            heads.append(lines)
            rest &= ~self._moved(slots, arrange, fed)
            if len(heads) > _MOST_HEADS:
                raise ReplayError(f"more than {_MOST_HEADS} heads")
        return heads

    def _feeding(self, slots: Tensor, slot: tuple[int, ...]) -> Tensor:
        """The lines that feed a slot."""
        energy = torch.zeros(self._lines + 1, device=self._places.device)
        for probe in range(1 if self._one_to_one else 1 + (slots.shape[-1] - 1).bit_length()):
            # Any two elements have the same sign in one probe and different signs in another, so that they cannot always cancel.
            bit = 1 << (probe - 1) if probe else 0
            weights = torch.where(torch.arange(slots.shape[-1]) & bit > 0, -1.0, 1.0)
            with torch.enable_grad():
                chosen = slots[slot]
                chosen = torch.view_as_real(chosen) @ torch.tensor([1.0, 0.5]).to(chosen.real) if chosen.is_complex() else chosen
                try:
                    (grad,) = torch.autograd.grad((chosen * weights.to(chosen)).sum(), self._leaf, retain_graph=True, allow_unused=True)
                except RuntimeError as error:
                    raise ReplayError(f"it cannot be differentiated: {str(error).splitlines()[0][:120]}") from error
            if grad is not None:
                moved = grad.nonzero().flatten()  # places of -1, of no line, count for the last one
                energy.index_add_(0, self._places[moved] % (self._lines + 1), grad[moved].abs().float() ** 2)
        energy = energy[:-1].nan_to_num()
        return energy > _WEAK**2 * energy.max() if float(energy.max()) > 0 else energy > 1

    def _moved(self, slots: Tensor, arrange: Callable[[Tensor], Tensor], lines: Tensor) -> Tensor:
        """Which slots change when ``lines`` do."""
        chosen = torch.cat([lines, lines.new_zeros(1)])[self._places]
        with torch.no_grad():
            after = arrange(self._replay(torch.where(chosen, self._start + self._noise, self._start)))
            change = (after - slots).abs().float().nan_to_num().amax(-1)
        return change > _WEAK * change.max() if float(change.max()) > 0 else torch.zeros_like(change, dtype=torch.bool)


def _is_one_to_one(linear: LinearMap, nodes: Sequence[Node]) -> bool:
    """Whether each element of the operand comes from one of the layer's output, so that nothing can cancel."""
    made = {linear.out.storage}
    for node in nodes:
        if any(ref.dtype.is_complex for ref in node.inputs):
            return False
        if node.op not in _ONE_TO_ONE or (node.op not in ("cat", "stack") and sum(ref.storage in made for ref in node.inputs) > 1):
            return False
        made |= {ref.storage for ref in node.outputs}
    return True


def _signature(linear: LinearMap, operand: Operand, nodes: Sequence[Node]) -> object:
    """The same for stretches of the same operations on the same shapes."""
    numbers: dict[int, int] = {}

    def plain(leaf: object) -> object:
        if isinstance(leaf, Ref):
            return (numbers.setdefault(leaf.storage, len(numbers)), leaf.offset, leaf.shape, leaf.stride, leaf.dtype)
        if isinstance(leaf, (list, tuple)):
            return tuple(plain(x) for x in leaf)
        if isinstance(leaf, dict):
            return tuple((k, plain(v)) for k, v in leaf.items())
        return leaf if isinstance(leaf, (int, float, bool, str, torch.dtype)) else str(leaf)

    steps = [(node.name, plain(node.args), plain(node.kwargs), plain(node.outputs), _values(node)) for node in nodes]
    places = linear.places
    ends = (plain(linear.out), plain(operand.ref), operand.vector, operand.token)
    return (ends, tuple(steps), hash(places.numpy().tobytes()), linear.codes.numel())


def _values(node: Node) -> tuple[int, ...]:
    return tuple(hash(value.cpu().numpy().tobytes()) for value in node.held.values())
