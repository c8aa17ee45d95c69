"""From an operand of attention back to the layers that made it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lightning_adam_mini.detection.evidence.graph import Graph, Kind
from lightning_adam_mini.detection.evidence.heads import HeadLines, HeadTracer, Operand
from lightning_adam_mini.detection.evidence.linear import LinearMap, read_linear
from lightning_adam_mini.detection.evidence.replay import Replay, ReplayError, stretch
from lightning_adam_mini.detection.evidence.sites import Site
from lightning_adam_mini.detection.evidence.tape import Node

_MOST = 32  # layers that may make one operand; more of them are a residual stream


@dataclass(frozen=True, eq=False)
class Origin:
    """A layer that makes a role of an attention.

    Attributes:
        role: ``q``, ``k`` or ``v``.
        linear: The layer's map.
        found: Its heads.
        alike: The module where the same operations were traced.
    """

    role: str
    linear: LinearMap
    found: HeadLines
    alike: str


@dataclass(frozen=True)
class Lost:
    """An operand that could not be traced, and why."""

    role: str
    reason: str


class OriginFinder:
    """Finds the layers that make the operands of attention."""

    def __init__(self, graph: Graph) -> None:
        """Args: the graph."""
        self._graph = graph
        self._tracer = HeadTracer(graph)
        self._linears: dict[int, LinearMap | None] = {}

    def find(self, site: Site) -> Iterator[Origin | Lost]:
        """What makes the operands of ``site``, one or more a role."""
        ends = {operand.role: self._graph.walk_back(operand.ref, operand.before) for operand in site.operands}
        made_by = {role: [node for node in walk.ends if self._graph.kind(node) is Kind.LINEAR] for role, walk in ends.items()}
        all_of_site = {node.index for nodes in made_by.values() for node in nodes}
        origins: list[Origin | Lost] = []
        for operand in site.operands:
            nodes = made_by[operand.role]
            if not nodes:
                others = {self._graph.kind(node).value for node in ends[operand.role].ends}
                where = " and ".join(sorted(others)) or "the input or a parameter itself"
                origins.append(Lost(operand.role, f"no layer makes it; it comes from {where}"))
            elif len(nodes) > _MOST:
                origins.append(Lost(operand.role, "it is the residual stream: no layer of its own makes it"))
            else:
                origins += [self._trace(operand, node, all_of_site) for node in nodes]
        yield from _agree(origins)

    def _trace(self, operand: Operand, node: Node, all_of_site: set[int]) -> Origin | Lost:
        linear = self._linear(node)
        if linear is None:
            return Lost(operand.role, f"the weight of {node.op} in {node.module or 'the model'} is not a parameter as it stands")
        try:
            found, alike = self._tracer.trace(linear, operand)
            if not found.heads:
                return Lost(operand.role, f"nothing of {node.op} in {node.module or 'the model'} reaches it")
            if self._is_stream(linear, found, all_of_site):
                return Lost(operand.role, "it is the residual stream: the same lines are the input of other projections")
        except ReplayError as error:
            return Lost(operand.role, str(error))
        return Origin(operand.role, linear, found, alike)

    def _linear(self, node: Node) -> LinearMap | None:
        if node.index not in self._linears:
            self._linears[node.index] = read_linear(self._graph, node)
        return self._linears[node.index]

    def _is_stream(self, linear: LinearMap, found: HeadLines, all_of_site: set[int]) -> bool:
        """Whether the lines found also go into a layer that leads to another layer of the same attention."""
        later = [index for index in all_of_site if index > linear.node.index]
        if not later:
            return False
        leading = self._before(later, linear.node.index)
        for node in self._next_linears(linear.node):
            if node.index not in leading:
                continue
            following = self._linear(node)
            if following is not None and self._reaches(linear, found, following):
                return True
        return False

    def _before(self, indices: list[int], after: int) -> set[int]:
        """The operations later than ``after`` that lead to ``indices``, with them."""
        tape = self._graph.tape
        seen: set[int] = set(indices)
        todo = [tape.nodes[i] for i in indices]
        while todo:
            node = todo.pop()
            for ref in node.inputs:
                for earlier in tape.writers(ref, node.index):
                    if earlier.index > after and earlier.index not in seen:
                        seen.add(earlier.index)
                        todo.append(earlier)
        return seen

    def _next_linears(self, node: Node) -> Iterator[Node]:
        """The layers that read what ``node`` made, with nothing but operations to look through between."""
        seen: set[int] = set()
        todo = [(ref.storage, node.index) for ref in node.outputs]
        while todo:
            storage, after = todo.pop()
            for reader in self._graph.tape.readers(storage, after):
                if reader.index in seen:
                    continue
                seen.add(reader.index)
                kind = self._graph.kind(reader)
                if kind is Kind.LINEAR:
                    yield reader
                elif kind is Kind.PASS:
                    todo += [(ref.storage, reader.index) for ref in (*reader.outputs, *reader.written) if ref.is_differentiable]

    def _reaches(self, linear: LinearMap, found: HeadLines, following: LinearMap) -> bool:
        nodes = stretch(self._graph, linear.out, linear.node.index, following.data, following.node.index)
        try:
            replay = Replay(self._graph.tape, linear.out, following.data, nodes)
            start = replay.values()
            lines = torch.zeros(linear.codes.numel() + 1, dtype=torch.bool)
            lines[sorted(frozenset().union(*found.heads))] = True
            chosen = lines[linear.places].to(start.device)
            with torch.no_grad():
                return bool((replay(start) != replay(torch.where(chosen, start + 1, start))).any())
        except ReplayError:
            return True


def _agree(origins: list[Origin | Lost]) -> Iterator[Origin | Lost]:
    """Drop layers that map tokens, not channels: their vectors run another way than those of the rest (Linformer)."""
    along = {o.found.along_tokens for o in origins if isinstance(o, Origin) and o.role in "qk"}
    for origin in origins:
        if isinstance(origin, Origin) and len(along) > 1 and origin.found.along_tokens:
            yield Lost(origin.role, f"{origin.linear.node.module or 'the model'} maps tokens, not channels")
        else:
            yield origin
