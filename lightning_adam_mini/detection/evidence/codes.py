"""Which element of which parameter stands where in a tensor that was made from parameters alone.

A weight reaches the product that uses it as it is, as a view, cast by autocast, cut, joined with others, or rescaled (weight
normalisation). An element's *code* is the number of the parameter and the element's place in it, in one integer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_adam_mini.detection.evidence.tape import Node, Ref, Tape

_PLACES = 1 << 44
# Operations after which an element is somewhere else although the shape is the same, or is a mixture.
_MOVES = frozenset({"flip", "roll", "sort", "gather", "index_select", "index", "cumsum", "mm", "bmm", "addmm", "baddbmm", "convolution"})


class WeightCodes:
    """The codes of tensors on a tape."""

    def __init__(self, tape: Tape) -> None:
        """Args: the tape."""
        self._tape = tape
        self._known: dict[tuple[Ref, int], bool] = {}

    def is_weight(self, ref: Ref, before: int) -> bool:
        """Whether ``ref`` is a parameter, or one that was cast, cut, joined or rescaled."""
        if ref.storage in self._tape.from_input or ref.storage not in self._tape.from_weight:
            return False
        if (ref, before) not in self._known:
            first = ref
            while first.shape:
                first = first.select(0, 0)
            self._known[ref, before] = self.read(first, before) is not None
        return self._known[ref, before]

    def read(self, ref: Ref, before: int) -> Tensor | None:
        """The codes of ``ref``, in its shape; -1 for an element of no parameter, None if nothing is known."""
        return self._at(ref.storage, ref.offsets(), ref, before)

    def parameters(self, codes: Tensor) -> list[tuple[int, tuple[int, ...]] | None]:
        """For each code the parameter's number and the element's index in it; None for -1."""
        found: list[tuple[int, tuple[int, ...]] | None] = [None] * codes.numel()
        numbers, places = codes // _PLACES, codes % _PLACES
        for number in numbers[codes >= 0].unique().tolist():
            here = (codes >= 0) & (numbers == number)
            rest, index = places[here], []
            for size in reversed(self._tape.weights[number].ref.shape):
                index.insert(0, rest % size)
                rest = rest // size
            rows = torch.stack(index, 1).tolist() if index else [[]] * int(here.sum())
            for at, row in zip(here.nonzero().flatten().tolist(), rows, strict=True):
                found[at] = (number, tuple(row))
        return found

    def _at(self, storage: int, offsets: Tensor, ref: Ref, before: int, depth: int = 0) -> Tensor | None:
        if storage in self._tape.by_storage:
            return self._of_parameters(storage, offsets)
        writers = list(self._tape.writers(ref, before))
        if len(writers) != 1 or depth > 16:
            return None
        node = writers[0]
        out = next((r for r in node.outputs if r.storage == storage), None)
        if out is None or node.op in _MOVES:
            return None
        coordinates = out.coordinates(offsets)
        if node.op in ("cat", "stack"):
            return self._joined(node, coordinates, depth)
        same = [r for r in node.inputs if r.shape == out.shape and r.storage in self._tape.from_weight]
        same.sort(key=lambda r: r.storage not in self._tape.by_storage)
        return self._in(same[0], coordinates, node.index, depth) if same else None

    def _in(self, ref: Ref, coordinates: list[Tensor], before: int, depth: int) -> Tensor | None:
        offsets = torch.full_like(coordinates[0], ref.offset) if coordinates else torch.tensor(ref.offset)
        for c, step in zip(coordinates, ref.stride, strict=True):
            offsets = offsets + c * step
        return self._at(ref.storage, offsets, ref, before, depth + 1)

    def _joined(self, node: Node, coordinates: list[Tensor], depth: int) -> Tensor | None:
        pieces = [p for p in node.args[0] if isinstance(p, Ref)]
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        dim %= len(coordinates)
        codes = torch.full_like(coordinates[dim], -1)
        start = 0
        for piece in pieces:
            size = 1 if node.op == "stack" else piece.shape[dim]
            here = (coordinates[dim] >= start) & (coordinates[dim] < start + size)
            inner = [c[here] - (start if d == dim else 0) for d, c in enumerate(coordinates)]
            if node.op == "stack":
                del inner[dim]
            start += size
            if here.any():
                found = self._in(piece, inner, node.index, depth) if not self._tape.is_constant(piece) else None
                if found is not None:
                    codes[here] = found
        return codes if bool((codes >= 0).any()) else None

    def _of_parameters(self, storage: int, offsets: Tensor) -> Tensor | None:
        codes = torch.full_like(offsets, -1)
        for number in self._tape.by_storage[storage]:
            ref = self._tape.weights[number].ref
            here = (codes < 0) & (offsets >= ref.offset) & (offsets < ref.end)
            place = torch.zeros_like(offsets)
            for c, size in zip(ref.coordinates(offsets), ref.shape, strict=True):
                place = place * size + c
            codes = torch.where(here, number * _PLACES + place, codes)
        return codes if bool((codes >= 0).any()) else None
