"""Which lines of a layer's output feed which head of a query, key or value.

A *slot* is one vector of the operand: the query of one token and one head. One vector-Jacobian product of a slot gives the lines that
feed it: a head. Disturbing these lines gives all slots of that head, so that one product per head is enough, wherever the heads lie in the
operand: in a batch dimension, among the tokens (multi-query attention by einsum), in windows.

Where each slot has a single line, the operand's vectors run along tokens instead of channels (cross-covariance attention, XCA). Then a
head is what the product's batch dimensions hold together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini.detection.evidence.graph import Graph
from lightning_adam_mini.detection.evidence.replay import Replay, ReplayError, plainly
from lightning_adam_mini.detection.evidence.tape import Ref
from lightning_adam_mini.detection.evidence.weights import Linear

_WEAK = 0.16  # of the strongest: what is below is a leak (a mean over all heads), not a part of the head
_MOST_HEADS = 1024


class Operand(NamedTuple):
    """A query, key or value as the operation ``before`` reads it.

    ``vector`` is the dimension along which a query is compared with a key, or in which a value has its features, and ``token`` that of
    the tokens. The other dimensions are heads and batches.
    """

    role: str
    ref: Ref
    before: int
    vector: int
    token: int


class Heads(NamedTuple):
    """The lines of each head of a layer's output, none if it reaches no slot; whether vectors run along tokens; where it was traced."""

    lines: tuple[frozenset[int], ...]
    along_tokens: bool
    traced_in: str


def find_heads(graph: Graph, operand: Operand, makers: Sequence[Linear]) -> list[Heads | str]:
    """For each layer that makes ``operand``: its heads, or why they are not known. Each kind of stretch is done once."""
    walk = graph.walk(operand.ref, operand.before)
    lines = tuple((m.starts.numel(), m.lines.stride(), hash(m.lines.contiguous().numpy().tobytes())) for m in makers)

    def find() -> list[Heads | str]:
        try:
            replay = Replay(graph.tape, [m.out for m in makers], operand.ref, walk)
        except ReplayError as error:
            return [str(error)] * len(makers)
        return [_heads(replay, operand, maker) for maker in makers]

    return graph.once((plainly(walk.inside, operand.ref, *(m.out for m in makers)), lines, operand[3:]), find)


def _heads(replay: Replay, operand: Operand, maker: Linear) -> Heads | str:
    try:
        for along_tokens in (False, True):
            found = _Search(replay, operand, maker, along_tokens).heads()
            if found is not None:
                return Heads(tuple(found), along_tokens, maker.node.module)
    except ReplayError as error:
        return str(error)
    return Heads((), True, maker.node.module)


class _Search:
    """One operand and one layer: which slots hang on which lines."""

    def __init__(self, replay: Replay, operand: Operand, maker: Linear, along_tokens: bool) -> None:
        self._replay, self._operand, self._maker, self._along_tokens = replay, operand, maker, along_tokens
        self._count = maker.starts.numel()
        self._slots = self._arrange(replay.out)
        start = replay.starts[maker.out.storage].detach()
        self._raised = start + torch.rand(start.shape, generator=torch.Generator().manual_seed(1)).to(start)

    def _arrange(self, tensor: Tensor) -> Tensor:
        """The operand with a slot's elements in its last dimension."""
        with torch.enable_grad():
            if self._along_tokens:
                return tensor.movedim((self._operand.token, self._operand.vector), (-2, -1)).flatten(-2)
            return tensor.movedim(self._operand.vector, -1)

    def heads(self) -> list[frozenset[int]] | None:
        """The heads; None if a slot has a single line although vectors should run along channels."""
        every = torch.ones(self._count, dtype=torch.bool)
        rest, taken = self._moved(every), ~every
        heads: list[frozenset[int]] = []
        while bool(rest.any()):
            slot = tuple(rest.nonzero()[0].tolist())
            rest[slot] = False
            fed = self._feeding(slot)
            lines = frozenset(fed.nonzero().flatten().tolist())
            if len(lines) == 1 and self._count > 1 and not self._along_tokens:
                return None
            if not lines or lines in heads:
                continue
            if bool((taken & fed).any()):
                raise ReplayError("some of its lines feed several heads")
            taken |= fed
            heads.append(lines)
            rest &= ~self._moved(fed)
            if len(heads) > _MOST_HEADS:
                raise ReplayError(f"more than {_MOST_HEADS} heads")
        return heads

    def _feeding(self, slot: tuple[int, ...]) -> Tensor:
        """The lines that feed a slot."""
        energy = torch.zeros(self._count)
        with torch.enable_grad():
            values = self._slots[slot]
        at = torch.arange(values.numel(), device=values.device)
        for probe in range(1 + (values.numel() - 1).bit_length()):
            # Any two elements have the same sign in one probe and different signs in another, so that they cannot always cancel.
            with torch.enable_grad():
                signed = torch.where(at & (1 << probe >> 1) > 0, -values, values)
            grad = self._replay.gradient(signed, self._maker.out)
            moved = grad.nonzero(as_tuple=True)
            energy.index_add_(0, self._maker.lines[moved], grad[moved] ** 2)
        energy = energy.nan_to_num()
        return (energy > _WEAK**2 * energy.max()) & (energy > 0)

    def _moved(self, lines: Tensor) -> Tensor:
        """Which slots change when ``lines`` do."""
        storage, starts = self._maker.out.storage, self._replay.starts
        with torch.no_grad():
            chosen = lines[self._maker.lines].to(self._raised.device)
            after = self._replay({**starts, storage: torch.where(chosen, self._raised, starts[storage])})
            change = (self._arrange(after) - self._slots).abs().float().nan_to_num().amax(-1)
        return (change > _WEAK * change.max()) & (change > 0)
