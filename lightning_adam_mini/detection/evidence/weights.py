"""Which element of which parameter stands where: in a tensor made from parameters alone, and along the lines of a map's output.

A weight reaches the product that uses it as it is, as a view, cast by autocast, cut, joined with others, or rescaled (weight
normalisation). An element's *code* is the storage of the parameter and the place in it, in one integer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini.detection.evidence.tape import Node, Ref, Tape

_PLACES = 1 << 44
# Operations after which an element is somewhere else although the shape is the same, or is a mixture.
_MOVES = frozenset({"flip", "roll", "sort", "gather", "index_select", "index", "cumsum", "mm", "bmm", "addmm", "baddbmm", "convolution"})
_PRODUCTS = frozenset({"mm", "bmm", "mv", "addmm", "_addmm_activation", "baddbmm", "addmv", "linear", "mkldnn_linear"})
Element = tuple[int, tuple[int, ...]]
"""The number of a parameter and an index into it."""


def factors(node: Node) -> tuple[Ref, Ref] | None:
    """The factors of a product: two activations, or an activation and a weight."""
    if not node.name.startswith("aten::") or not (node.op in _PRODUCTS or is_convolution(node)):
        return None
    left, right = node.first("mat1", "batch1", "mat", "input", "self"), node.first("mat2", "batch2", "vec", "weight")
    return None if left is None or right is None else (left, right)


def is_convolution(node: Node) -> bool:
    """Whether ``node`` is a convolution."""
    return node.op.endswith("convolution")


class Linear(NamedTuple):
    """A map of ``data`` by a weight: for each line of its output the code of the weight's first element, and the line of each element."""

    node: Node
    out: Ref
    data: Ref
    starts: Tensor
    lines: Tensor

    @property
    def where(self) -> str:
        """The module that does it."""
        return self.node.module or "the model"


class Weights:
    """The parameters on a tape and what is made of them."""

    def __init__(self, tape: Tape, activations: set[int]) -> None:
        """Args: the tape, and the storages that inputs went into."""
        self._tape, self._activations = tape, activations
        self._known: dict[tuple[Ref, int], bool] = {}

    def is_weight(self, ref: Ref, before: int) -> bool:
        """Whether ``ref`` is a parameter, or one that was cast, cut, joined or rescaled."""
        if (ref, before) not in self._known:
            first = Ref(ref.storage, ref.offset, (), (), ref.dtype)
            self._known[ref, before] = ref.storage not in self._activations and self._read(first, before) is not None
        return self._known[ref, before]

    def side(self, node: Node) -> str | None:
        """Which factor of a product is a weight, ``"left"`` or ``"right"``; the right one if both are."""
        both = factors(node)
        if both is None:
            return None
        return next((side for side, ref in (("right", both[1]), ("left", both[0])) if self.is_weight(ref, node.index)), None)

    def elements(self, codes: Tensor) -> list[Element | None]:
        """The element of a parameter for each code; None for -1."""
        found: list[Element | None] = [None] * codes.numel()
        for storage in (codes[codes >= 0] // _PLACES).unique().tolist():
            for number in self._tape.by_storage[storage]:
                ref = self._tape.weights[number][1]
                places = codes - storage * _PLACES
                here = ((places >= ref.offset) & (places < ref.end)).nonzero().flatten()
                rows = torch.stack([here, *ref.coordinates(places[here])], 1).tolist()
                for at, *index in rows:
                    found[at] = (number, tuple(index))
        return found

    def linear(self, node: Node) -> Linear | None:
        """The map that ``node`` is, or None if the lines of its weight are not known."""
        both, side = factors(node), self.side(node)
        if both is None or side is None or not node.outputs:
            return None
        data, weight = both if side == "right" else both[::-1]
        first, out = _first(node, weight, side), node.outputs[0]
        codes = None if first is None else self._read(first, node.index)
        if codes is None or bool((codes < 0).any()):
            return None
        starts, lines = torch.unique(codes.flatten(), return_inverse=True)
        dims = len(out.shape)
        if is_convolution(node):
            shape = [1, -1] + [1] * (dims - 2)
        elif "linear" in node.op or dims == 1:
            shape = [1] * (dims - 1) + [-1]
        else:
            shape = [*codes.shape[:-1], 1, codes.shape[-1]] if side == "right" else [*codes.shape, 1]
        return Linear(node, out, data, starts, lines.view(shape).expand(out.shape))

    def biases(self, linear: Linear, inside: Sequence[Node]) -> Iterator[dict[int, Element]]:
        """For each bias of the map, in its operation or added among ``inside``: the element that is added to each line."""
        node, out = linear.node, linear.out
        own = node.first("bias", "self") if node.first("bias") or "add" in node.op else None
        added: list[tuple[Ref, int, tuple[int, ...], int]] = []
        if own is not None and len(own.shape) == 1:
            added.append((own, node.index, (out.stride[1 if is_convolution(node) else -1],), out.offset))
        for later in inside:
            one, other = later.first("self"), later.first("other")
            if later.op in ("add", "add_") and one is not None and other is not None and one.storage == out.storage:
                behind = len(one.shape) - len(other.shape)
                if behind >= 0 and all(b in (1, a) for a, b in zip(one.shape[behind:], other.shape, strict=True)):
                    added.append((other, later.index, one.stride[behind:], one.offset))
        flat = torch.empty_strided(out.shape, out.stride, dtype=torch.long).copy_(linear.lines)
        for ref, before, stride, start in added:
            codes = self._read(ref, before) if self.is_weight(ref, before) else None
            if codes is not None:
                lines = flat.as_strided(ref.shape, stride, start - out.offset).flatten().tolist()
                if len(set(lines)) == len(lines):  # it does not run along the tokens
                    yield {line: at for line, at in zip(lines, self.elements(codes.flatten()), strict=True) if at is not None}

    def _read(self, ref: Ref, before: int) -> Tensor | None:
        """The codes of ``ref``, in its shape; -1 for an element of no parameter, None if nothing is known."""
        behind = range(len(ref.shape) - 1, -1, -1)
        return self._at(ref, [torch.arange(size).view(-1, *[1] * d) for size, d in zip(ref.shape, behind, strict=True)], before)

    def _at(self, ref: Ref, index: Sequence[Tensor], before: int, depth: int = 0) -> Tensor | None:
        """The codes of the elements of ``ref`` at ``index``."""
        offsets = sum((at * step for at, step in zip(index, ref.stride, strict=True)), torch.tensor(ref.offset))
        if ref.storage in self._tape.by_storage:
            return offsets + ref.storage * _PLACES
        writers = self._tape.writers(ref, before)
        out = next((r for node in writers for r in node.outputs if r.storage == ref.storage), None)
        if len(writers) != 1 or out is None or writers[0].op in _MOVES or depth > 16:
            return None
        node, index = writers[0], out.coordinates(offsets)
        if node.op == "cat":
            dim = node.named.get("dim", 0) % len(index)
            codes, start = torch.full_like(offsets, -1), 0
            for piece in node.args[0]:
                here = (index[dim] >= start) & (index[dim] < start + piece.shape[dim])
                found = self._at(piece, [(at - start if d == dim else at)[here] for d, at in enumerate(index)], node.index, depth + 1)
                codes[here] = -1 if found is None else found
                start += piece.shape[dim]
            return codes if bool((codes >= 0).any()) else None
        same = [r for r in node.inputs if r.shape == out.shape and (self._tape.is_made(r) or r.storage in self._tape.by_storage)]
        same.sort(key=lambda r: r.storage not in self._tape.by_storage)
        return next((found for r in same if (found := self._at(r, index, node.index, depth + 1)) is not None), None)


def _first(node: Node, weight: Ref, side: str) -> Ref | None:
    """The weight with its inner dimensions fixed at their first index."""
    if is_convolution(node):
        transposed = node.named.get("transposed", False)
        for _ in weight.shape[2:]:
            weight = weight.first(-1)
        return None if transposed and node.named.get("groups", 1) != 1 else weight.first(0 if transposed else 1)
    if len(weight.shape) < 2:
        return None
    return weight.first(-2 if side == "right" and "linear" not in node.op else -1)
