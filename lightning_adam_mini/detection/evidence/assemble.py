"""From traced attentions to the line orders of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from lightning_adam_mini.detection.evidence.evidence import NotSeen, ParameterEvidence
from lightning_adam_mini.detection.evidence.graph import Graph
from lightning_adam_mini.detection.evidence.linear import LinearMap
from lightning_adam_mini.detection.evidence.order import write_lines
from lightning_adam_mini.detection.evidence.origins import Origin
from lightning_adam_mini.detection.evidence.tape import Ref
from lightning_adam_mini.detection.tree import Slot

_RANK = {"q": 0, "k": 1, "v": 2}
Index = tuple[int, ...]
"""Where a line begins in a parameter."""


@dataclass
class _Lines:
    """What was found of one parameter: the heads of each role, as sets of lines, and the dimensions that the lines run along."""

    number: int
    is_bias: bool
    inner: set[int] = field(default_factory=set)
    heads: dict[str, set[frozenset[Index]]] = field(default_factory=dict)
    modules: dict[str, None] = field(default_factory=dict)
    alike: dict[str, None] = field(default_factory=dict)


class Assembler:
    """Collects origins and turns them into evidence."""

    def __init__(self, graph: Graph, slots: Sequence[Slot]) -> None:
        """Args: the graph, and the parameters in the order of the tape."""
        self._graph = graph
        self._slots = slots
        self._found: dict[int, _Lines] = {}

    def add(self, origin: Origin) -> None:
        """Record an origin."""
        linear = origin.linear
        starts = {line: [start] for line, start in enumerate(self._graph.codes.parameters(linear.codes)) if start is not None}
        self._put(origin, starts, is_bias=False)
        for line, end in enumerate(self._graph.codes.parameters(linear.others)):
            for number, index in starts.get(line, ()):
                if number in self._found and end is not None and end[0] == number:
                    self._found[number].inner |= {dim for dim, (a, b) in enumerate(zip(index, end[1], strict=True)) if a != b}
        for table in self._biases(linear):
            self._put(origin, table, is_bias=True)

    def _put(self, origin: Origin, table: dict[int, list[tuple[int, Index]]], is_bias: bool) -> None:
        """Record the heads; ``table``: the elements of parameters that stand for each line."""
        for head in origin.found.heads:
            found: dict[int, set[Index]] = {}
            for line in head:
                for number, index in table.get(line, ()):
                    found.setdefault(number, set()).add(index)
            for number, lines in found.items():
                self._lines(number, origin, is_bias).heads.setdefault(origin.role, set()).add(frozenset(lines))

    def _lines(self, number: int, origin: Origin, is_bias: bool) -> _Lines:
        lines = self._found.setdefault(number, _Lines(number, is_bias))
        lines.modules[origin.linear.node.module] = None
        if origin.alike != origin.linear.node.module:
            lines.alike[origin.alike] = None
        return lines

    def _biases(self, linear: LinearMap) -> Iterator[dict[int, list[tuple[int, Index]]]]:
        """For each tensor that is added to the output: the elements of parameters that are added to each line."""
        if linear.added is not None:
            ref, lines = linear.added
            yield self._table(ref, lines, linear.node.index)
        for node in self._graph.tape.readers(linear.out.storage, linear.node.index):
            refs = [a for a in node.args[:2] if isinstance(a, Ref)] if node.op in ("add", "add_") else []
            if len(refs) == 2 and refs[0].storage == linear.out.storage and self._graph.codes.is_weight(refs[1], node.index):
                yield self._table(refs[1], linear.lines_of(refs[0]), node.index)

    def _table(self, ref: Ref, lines: torch.Tensor, before: int) -> dict[int, list[tuple[int, Index]]]:
        codes = self._graph.codes.read(ref, before) if self._graph.codes.is_weight(ref, before) else None
        if codes is None:
            return {}
        try:
            pairs = torch.stack([codes.expand(lines.shape).flatten(), lines.flatten()], 1).unique(dim=0)
        except RuntimeError:
            return {}
        table: dict[int, list[tuple[int, Index]]] = {}
        for line, element in zip(pairs[:, 1].tolist(), self._graph.codes.parameters(pairs[:, 0]), strict=True):
            if element is not None:
                table.setdefault(line, []).append(element)
        return table

    def finish(self) -> Iterator[ParameterEvidence | NotSeen]:
        """The evidence on each parameter, or why there is none."""
        for number in sorted(self._found):
            found, slot = self._found[number], self._slots[number]
            result = _write(found, slot)
            where = next(iter(found.modules))
            if isinstance(result, str):
                yield NotSeen(where, f"{slot.name}: {result}")
                continue
            axis, text, shared = result
            reason = f"running showed {text.replace('|', ', ')} in {where or 'the model'}" + (f"; {shared}" if shared else "")
            if found.alike:
                reason += f" (traced in {next(iter(found.alike)) or 'the model'}, same operations and shapes)"
            yield ParameterEvidence(slot.name, slot.shape, axis, text, reason, tuple(slot.names[1:]), found.is_bias)


def _write(found: _Lines, slot: Slot) -> tuple[int, str, str] | str:
    """Axis, line order and a remark; or why there is none."""
    roles = sorted(found.heads, key=_RANK.__getitem__)
    owner: dict[Index, tuple[str, int]] = {}
    remark = ""
    for role in roles:
        for count, head in enumerate(sorted(found.heads[role], key=min)):
            earlier = {owner[i][0] for i in head if i in owner}
            if not earlier:
                owner.update(dict.fromkeys(head, (role, count)))
            elif len(earlier) == 1 and head in found.heads[next(iter(earlier))]:
                remark = f"the same lines make {next(iter(earlier))} and {role}"
            else:
                return "its uses in several attentions disagree about its heads"
    dims = [d for d in range(len(slot.shape)) if d not in found.inner]
    long = [d for d in dims if slot.shape[d] > 1] or dims[:1]
    for axis in long:
        at: dict[int, set[tuple[str, int]]] = {}
        for index, line in owner.items():
            at.setdefault(index[axis], set()).add(line)
        if all(len(lines) == 1 for lines in at.values()):
            order = [next(iter(at.get(i, {("n", -1)}))) for i in range(slot.shape[axis])]
            text = write_lines(order)
            return (axis, text, remark) if text is not None else "the line order has no short form"
    return "its heads do not lie along one dimension"


def unique(items: Iterable[NotSeen]) -> tuple[NotSeen, ...]:
    """Each once, in order."""
    return tuple(dict.fromkeys(items))
