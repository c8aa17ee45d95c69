"""From the attentions on a tape to the line orders of parameters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from lightning_adam_mini.detection.evidence.evidence import Evidence, NotSeen, ParameterEvidence, Whole
from lightning_adam_mini.detection.evidence.graph import Graph, Kind
from lightning_adam_mini.detection.evidence.heads import Heads, Operand, find_heads
from lightning_adam_mini.detection.evidence.order import write_lines
from lightning_adam_mini.detection.evidence.replay import Replay, ReplayError
from lightning_adam_mini.detection.evidence.sites import find_sites
from lightning_adam_mini.detection.evidence.tape import Node, Tape
from lightning_adam_mini.detection.evidence.weights import Linear
from lightning_adam_mini.detection.evidence.whole import find_whole
from lightning_adam_mini.detection.tree import Slot

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_MOST = 32  # layers that may make one operand; more of them are a residual stream
_NAMES = {"q": "queries", "k": "keys", "v": "values"}


@dataclass
class _Found:
    """What was found of one parameter: the heads of each role, as sets of places where lines start."""

    is_bias: bool
    heads: dict[str, set[frozenset[tuple[int, ...]]]] = field(default_factory=dict)
    sites: set[str] = field(default_factory=set)
    modules: dict[str, None] = field(default_factory=dict)
    alike: dict[str, None] = field(default_factory=dict)


def read(tape: Tape, slots: Sequence[Slot]) -> Evidence:
    """What the tape shows of the parameters."""
    return _Reader(Graph(tape), slots).read()


class _Reader:
    def __init__(self, graph: Graph, slots: Sequence[Slot]) -> None:
        self._graph = graph
        by_name = {slot.name: slot for slot in slots}
        self._slots = {number: by_name[name] for number, (name, _) in enumerate(graph.tape.weights)}
        self._found: dict[int, _Found] = {}
        self._lost: dict[NotSeen, None] = {}

    def read(self) -> Evidence:
        attentions: dict[str, None] = {}
        readers: dict[str, None] = {}
        for module, operands, problem in find_sites(self._graph):
            if self._graph.tape.is_late():
                self._lose(module, "there was no time left to read what was recorded")
                continue
            attentions[module] = None
            if problem is not None:
                self._lose(module, f"attention: {problem}")
            origins = self._safely(module, lambda m=module, o=operands: list(self._origins(m, o)), [])
            for origin in origins:
                self._safely(module, lambda m=module, o=origin: self._add(m, *o), None)
            for use in {operand.before for operand in operands if operand.role == "v"} if origins else ():
                readers |= dict.fromkeys(self._safely(module, lambda u=use: self._graph.readers(self._graph.tape.nodes[u]), ()))
        written = {n: self._safely(self._slots[n].path, lambda n=n: self._written(n), None) for n in sorted(self._found)}
        found = [self._evidence(n, *result) for n, result in written.items() if result is not None]  # now it is known what was not seen
        for number in self._found:  # one tensor that makes queries too is no output projection
            readers.pop(self._slots[number].name, None)
        for where in self._graph.tape.unknown.values():
            self._lose(where, "a tensor is made by what cannot be recorded or read")
        whole = self._safely("", lambda: find_whole(self._graph), Whole())
        return Evidence(tuple(p for p in found if p is not None), tuple(attentions), tuple(self._lost), tuple(readers), whole)

    def _lose(self, where: str, reason: str, parameter: str = "") -> None:
        self._lost[NotSeen(where, f"{parameter}: {reason}" if parameter else reason, parameter)] = None

    def _safely(self, where: str, function: Callable[[], _T], otherwise: _T) -> _T:
        """The result of ``function``; ``otherwise`` if it fails, which is not seen then."""
        try:
            return function()
        except Exception as error:
            _log.debug("what was recorded in %s cannot be read", where or "the model", exc_info=True)
            self._lose(where, f"{type(error).__name__} while what was recorded was read")
            return otherwise

    def _origins(self, module: str, operands: Sequence[Operand]) -> Iterator[tuple[Operand, Linear, Heads]]:
        """The layers that make the operands of an attention, and their heads."""
        ends = {operand: self._graph.walk(operand.ref, operand.before).ends for operand in operands}
        makers = {operand: [end for end in ends[operand] if self._graph.kind(end) is Kind.LINEAR] for operand in operands}
        all_makers = {node for nodes in makers.values() for node in nodes}
        traced: list[tuple[Operand, Linear, Heads]] = []
        for operand, nodes in makers.items():
            problems: list[str] = []
            if not nodes:
                where = " and ".join(sorted({self._graph.kind(end).value for end in ends[operand]}))
                problems.append(f"no layer makes it; it comes from {where or 'the input or a parameter itself'}")
            elif len(nodes) > _MOST:
                problems.append("it is the residual stream: no layer of its own makes it")
                nodes = []
            linears = {node: self._graph.linear(node) for node in nodes}
            known = [linear for linear in linears.values() if linear is not None]
            unknown = [node for node, linear in linears.items() if linear is None]
            problems += [f"the weight of {n.op} in {n.module or 'the model'} is not a parameter as it stands" for n in unknown]
            all_heads = find_heads(self._graph, operand, known) if known else []
            if known and all(isinstance(heads, Heads) and not heads.lines for heads in all_heads):
                problems.append(f"nothing of {known[0].where} reaches it")
            for linear, heads in zip(known, all_heads, strict=True):
                if isinstance(heads, str):
                    problems.append(heads)
                elif heads.lines and self._is_stream(linear, heads, all_makers):
                    problems.append("it is the residual stream: the same lines are the input of other projections")
                elif heads.lines:
                    traced.append((operand, linear, heads))
            for problem in problems:
                self._lose(module, f"{_NAMES[operand.role]}: {problem}")
        # Of layers that make one kind of vector, those that map tokens make another (Linformer).
        is_mixed = len({heads.along_tokens for operand, _, heads in traced if operand.role in "qk"}) > 1
        for operand, linear, heads in traced:
            if is_mixed and heads.along_tokens:
                self._lose(module, f"{_NAMES[operand.role]}: {linear.where} maps tokens, not channels")
            else:
                yield operand, linear, heads

    def _is_stream(self, linear: Linear, heads: Heads, all_makers: set[Node]) -> bool:
        """Whether the lines found also go into a layer that leads to another layer of the same attention."""
        lines = torch.zeros(linear.starts.numel(), dtype=torch.bool)
        lines[sorted(frozenset().union(*heads.lines))] = True
        for following in map(self._graph.linear, self._graph.between(linear.node, all_makers)):
            walk = self._graph.walk(following.data, following.node.index) if following is not None else None
            if following is None or walk is None or linear.node not in walk.ends:
                continue
            try:
                replay = Replay(self._graph.tape, [linear.out], following.data, walk)
                if bool((replay.gradient(replay.out, linear.out).bool() & lines[linear.lines]).any()):
                    return True
            except ReplayError:
                return True
        return False

    def _add(self, module: str, operand: Operand, linear: Linear, heads: Heads) -> None:
        """Record heads: where their lines start in parameters, biases among them."""
        weights, inside = self._graph.weights, self._graph.walk(operand.ref, operand.before).inside
        starts = self._graph.once(linear.node, lambda: dict(enumerate(weights.elements(linear.starts))))
        tables = [(False, starts), *((True, table) for table in weights.biases(linear, inside))]
        for is_bias, table in tables:
            for head in heads.lines:
                parts: dict[int, set[tuple[int, ...]]] = {}
                for number, index in filter(None, map(table.get, head)):
                    parts.setdefault(number, set()).add(index)
                for number, part in parts.items():
                    found = self._found.setdefault(number, _Found(is_bias))
                    found.heads.setdefault(operand.role, set()).add(frozenset(part))
                    found.sites.add(module)
                    found.modules[linear.node.module] = None
                    if heads.traced_in != linear.node.module:
                        found.alike[heads.traced_in] = None

    def _written(self, number: int) -> tuple[int, str, str] | None:
        """Axis, line order and a remark of a parameter; None if it has none, which is not seen then."""
        found, slot = self._found[number], self._slots[number]
        result = _write(found, slot.shape)
        if isinstance(result, str):
            self._lose(next(iter(found.modules)), result, slot.name)
            return None
        return result

    def _evidence(self, number: int, axis: int, text: str, remark: str) -> ParameterEvidence | None:
        found, slot = self._found[number], self._slots[number]
        where = next(iter(found.modules))
        if "n" in text and any(lost.where in found.sites for lost in self._lost):
            self._lose(where, "some of its lines may feed what was not seen", slot.name)
            return None
        reason = f"running showed {text.replace('|', ', ')} in {where or 'the model'}" + remark
        if found.alike:
            reason += f" (traced in {next(iter(found.alike)) or 'the model'}, same operations and shapes)"
        return ParameterEvidence(slot.name, slot.shape, axis, text, reason, tuple(slot.names[1:]), found.is_bias)


def _write(found: _Found, shape: tuple[int, ...]) -> tuple[int, str, str] | str:
    """Axis, line order and a remark; or why there is none."""
    owner: dict[tuple[int, ...], tuple[str, int]] = {}
    remark = ""
    for role in sorted(found.heads, key="qkv".index):
        for count, head in enumerate(sorted(found.heads[role], key=min)):
            earlier = {owner[i][0] for i in head if i in owner}
            if not earlier:
                owner.update(dict.fromkeys(head, (role, count)))
            elif len(earlier) == 1 and head in found.heads[next(iter(earlier))]:
                remark = f"; the same lines make {next(iter(earlier))} and {role}"
            else:
                return "its uses in several attentions disagree about its heads"
    # A weight of one line has it along the dimension of one element.
    varied = [d for d in range(len(shape)) if len({index[d] for index in owner}) > 1]
    if len(varied) == len(shape) == 2 and not found.is_bias:  # a matrix for each head within it
        return "its heads do not lie along one dimension"
    dims = varied or [d for d in range(len(shape)) if shape[d] == 1]
    for axis in dims or range(len(shape)):
        at: dict[int, set[tuple[str, int]]] = {}
        for index, line in owner.items():
            at.setdefault(index[axis], set()).add(line)
        if all(len(lines) == 1 for lines in at.values()):
            text = write_lines([next(iter(at.get(i, {("n", -1)}))) for i in range(shape[axis])])
            return (axis, text, remark) if text is not None else "the line order has no short form"
    return "its heads do not lie along one dimension"
