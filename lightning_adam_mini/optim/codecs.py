"""What first moments are kept in: a dtype, or codes narrower than any, which are found by name.

``"8bit"`` keeps a signed square root per element and a float32 scale for each 256 of them. A tensor is cut into rows and each row, in the
order of its indices, into runs of 256, the last of which is the rest of the row: an embedding's token never shares a scale with another.
A run keeps its largest magnitude as its scale, and of each element the code ``c = round(127 sqrt(|x| / scale))`` with the sign of ``x``;
back it is ``sign(c) (c / 127)² scale``. The square root gives small elements finer steps. On the first moments of a GPT that trains, one
such rounding is off by 0.7 % of a tensor's norm: 0.8 % with codes in equal steps, 1.1 % with the dynamic exponents of 8-bit AdamW. On a
ResNet18's it is 0.6 %, 0.6 % and 0.9 %.

Rounding what was rounded before changes nothing, so a state may pass through floating point, as in a checkpoint for AdamW, and come back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

MomentumName: TypeAlias = Literal["float32", "bfloat16", "8bit"]
"""What users may ask for by name, as in YAML."""

MomentumDtype: TypeAlias = torch.dtype | Literal["8bit"]
"""What first moments are kept in: a dtype, or the name of a codec."""

SMALLEST = 4096
"""Elements of the smallest tensor that is kept in codes: smaller ones keep their dtype, because they are many, sensitive and cheap."""

_RUN = 256  # elements that share a scale, at most
_SHORTEST = 8  # elements of the shortest row that has scales of its own; below, the scales would take more than half of the codes' bytes
_LONG = 64  # elements from which on a row is long enough
_ROOT = 127
_ZERO = 2.0**-100  # runs below it are zero, so that no product with a scale is denormal


class Field(NamedTuple):
    """One tensor of a state.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


class Codec(Protocol):
    """How one tensor's first moment is kept. All zeros stand for zero."""

    @property
    def name(self) -> str:
        """What users call it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the moment."""
        ...

    @property
    def fields(self) -> Mapping[str, Field]:
        """The tensors that it takes, by what is added to the name of the moment: ``""`` for the first."""
        ...

    def encode_(self, values: Tensor, kept: Mapping[str, Tensor], scratch: Tensor | None = None) -> None:
        """Write a moment.

        Args:
            values: The moment, of any floating dtype and strides.
            kept: The tensors of :attr:`fields`; overwritten.
            scratch: Memory to work in: as many elements as ``values``, which is float32 or float64 then, of its dtype.
        """
        ...

    def decode(self, kept: Mapping[str, Tensor], dtype: torch.dtype, out: Tensor | None = None, scratch: Tensor | None = None) -> Tensor:
        """Read a moment.

        Args:
            kept: The tensors of :attr:`fields`.
            dtype: Dtype of the result; float32 or float64.
            out: Memory for the result: as many elements, of that dtype.
            scratch: Memory to work in, likewise.

        Returns:
            A tensor of its own, of the moment's shape.
        """
        ...

    def slices(self, elements: int) -> Iterator[tuple[Codec, slice, Mapping[str, slice]]]:
        """The moment cut into pieces that can be written and read alone.

        Args:
            elements: About how many elements a piece has.

        Yields:
            The codec of a piece, which part of the moment's first dimension it is, and which part of each field's.
        """
        ...

    def stacked(self, number: int) -> Codec | None:
        """The codec of several such moments along the first dimension, whose fields are theirs along the first; None if there is none.

        Args:
            number: How many; at least 1.
        """
        ...


@dataclass(frozen=True)
class Plain:
    """A moment as it is, in some dtype.

    Args:
        shape: Shape of the moment.
        dtype: The dtype.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """The dtype's name."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def fields(self) -> Mapping[str, Field]:
        """The moment itself."""
        return {"": Field(self.shape, self.dtype)}

    def encode_(self, values: Tensor, kept: Mapping[str, Tensor], scratch: Tensor | None = None) -> None:
        """Write a moment."""
        kept[""].copy_(values)

    def decode(self, kept: Mapping[str, Tensor], dtype: torch.dtype, out: Tensor | None = None, scratch: Tensor | None = None) -> Tensor:
        """Read a moment."""
        return kept[""].to(dtype, copy=True)

    def slices(self, elements: int) -> Iterator[tuple[Codec, slice, Mapping[str, slice]]]:
        """Some lines of the first dimension at a time."""
        for rows in _lines(self.shape, elements):
            yield replace(self, shape=(rows.stop - rows.start, *self.shape[1:])), rows, {"": rows}

    def stacked(self, number: int) -> Codec | None:
        """That of the larger shape."""
        return replace(self, shape=(number * self.shape[0], *self.shape[1:])) if self.shape else None


@dataclass(frozen=True)
class EightBit:
    """A byte per element, and a float32 scale per run.

    Args:
        shape: Shape of the moment.
        row: Elements of a row: where one ends, a run ends. [default: :func:`row_of`]
        lead: Elements before the first whole row, of a moment that is a range of a larger one.

    Example:
        >>> codec = EightBit((1000, 300))
        >>> {suffix: field.shape for suffix, field in codec.fields.items()}
        {'': (1000, 300), '_scale': (1000, 2)}
        >>> values = torch.linspace(-1, 1, 300_000).view(1000, 300)
        >>> kept = {suffix: torch.zeros(field.shape, dtype=field.dtype) for suffix, field in codec.fields.items()}
        >>> codec.encode_(values, kept)
        >>> bool((codec.decode(kept, torch.float32) - values).abs().max() < 0.008)
        True
    """

    shape: tuple[int, ...]
    row: int | None = None
    lead: int = 0

    name = "8bit"

    @property
    def fields(self) -> Mapping[str, Field]:
        """int8 codes of the moment's shape, and float32 scales: for each row, as the moment's first dimensions say, one per run."""
        return self._fields

    @cached_property
    def _fields(self) -> Mapping[str, Field]:
        if self.row is None:
            leading, row = _rows_of(self.shape)
            scales = (*self.shape[:leading], -(-row // _RUN))
        else:
            scales = (sum(rows * -(-row // _RUN) for _, rows, row in self._parts),)
        return {"": Field(self.shape, torch.int8), SCALE: Field(scales, torch.float32)}

    @cached_property
    def _parts(self) -> list[tuple[int, int, int]]:
        """First element, number of rows and elements of a row: of the lead, the whole rows and the rest."""
        numel = math.prod(self.shape)
        row = row_of(self.shape) if self.row is None else self.row
        lead = min(self.lead, numel)
        rows = (numel - lead) // row if row else 0
        rest = numel - lead - rows * row
        parts = [(0, 1, lead), (lead, rows, row), (lead + rows * row, 1, rest)]
        return [part for part in parts if part[1] and part[2]]

    def _runs(self, flat: Tensor, scales: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Views of some elements as (rows, runs, elements of a run), with those of their scales as (rows, runs, 1)."""
        scales, at = scales.view(-1), 0
        for begin, rows, row in self._parts:
            lines, runs, whole = flat[begin : begin + rows * row].view(rows, row), -(-row // _RUN), row // _RUN
            of_lines = scales[at : at + rows * runs].view(rows, runs, 1)
            if whole:
                yield lines[:, : whole * _RUN].unflatten(1, (whole, _RUN)), of_lines[:, :whole]
            if runs > whole:
                yield lines[:, whole * _RUN :].unsqueeze(1), of_lines[:, whole:]
            at += rows * runs

    def encode_(self, values: Tensor, kept: Mapping[str, Tensor], scratch: Tensor | None = None) -> None:
        """Write a moment."""
        wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
        flat, scales = wide.reshape(-1), kept[SCALE]
        work = torch.empty_like(flat) if scratch is None else scratch
        for (signed, scale), (roots, _) in zip(self._runs(flat, scales), self._runs(work, scales), strict=True):
            largest = torch.abs(signed, out=roots).amax(2, keepdim=True).to(torch.float32)
            zero = largest < _ZERO  # false for NaN, which so gets into the scale
            scale.copy_(largest.masked_fill_(zero, 0.0))
            roots.mul_((_ROOT**2 / largest.to(flat.dtype)).masked_fill_(zero, 0.0)).sqrt_().round_().copysign_(signed)
        kept[""].copy_(work.view(self.shape))

    def decode(self, kept: Mapping[str, Tensor], dtype: torch.dtype, out: Tensor | None = None, scratch: Tensor | None = None) -> Tensor:
        """Read a moment."""
        codes = kept[""]
        flat = torch.empty(codes.numel(), dtype=dtype, device=codes.device) if out is None else out
        flat.view(self.shape).copy_(codes)
        # Exactly one for the largest of a run, so that its scale comes back.
        flat.mul_(torch.abs(flat, out=scratch)).div_(_ROOT**2)
        for runs, scale in self._runs(flat, kept[SCALE]):
            runs.mul_(scale)
        return flat.view(self.shape)

    def slices(self, elements: int) -> Iterator[tuple[Codec, slice, Mapping[str, slice]]]:
        """Whole runs at a time."""
        if self.row is None and self.fields[SCALE].shape[:-1]:
            for rows in _lines(self.shape, elements):
                yield EightBit((rows.stop - rows.start, *self.shape[1:])), rows, {"": rows, SCALE: rows}
            return
        at = 0
        line = math.prod(self.shape[1:])
        for begin, rows, row in self._parts:
            runs = -(-row // _RUN)
            if rows > 1:
                unit, scales = row, runs
            else:  # a single row is cut at runs of 256 that lines of the first dimension fill
                unit = math.lcm(_RUN, line)
                scales = unit // _RUN
            by = max(elements // unit, 1)
            for first in range(0, -(-rows * row // unit), by):
                end, last = min((first + by) * unit, rows * row), min((first + by) * scales, rows * runs)
                lines = slice((begin + first * unit) // line, (begin + end) // line)
                piece = EightBit((lines.stop - lines.start, *self.shape[1:]), row if rows > 1 else end - first * unit)
                yield piece, lines, {"": lines, SCALE: slice(at + first * scales, at + last)}
            at += rows * runs

    def stacked(self, number: int) -> Codec | None:
        """Only of whole rows: what is one row, or begins within one, would end within another's run."""
        if number == 1:
            return self
        is_rows = self.row is None and leading_dims(self.shape) > 0
        return EightBit((number * self.shape[0], *self.shape[1:])) if is_rows else None


SCALE = "_scale"
SUFFIXES = ("", SCALE)
"""All that codecs add to the name of a moment."""

_CODECS: dict[str, type[EightBit]] = {EightBit.name: EightBit}
"""Every codec by its name: what ``momentum_dtype`` may be besides a dtype."""


def read_momentum_dtype(wanted: MomentumDtype | str | None) -> MomentumDtype | None:
    """What first moments are to be kept in, from a dtype or its name (``"bfloat16"``, ``"torch.bfloat16"``) or that of a codec.

    Raises:
        ValueError: If it is none of these, or no floating-point dtype.

    Example:
        >>> read_momentum_dtype("bfloat16"), read_momentum_dtype("8bit")
        (torch.bfloat16, '8bit')
    """
    found: Any = wanted
    if isinstance(wanted, str) and wanted not in _CODECS:
        found = getattr(torch, wanted.removeprefix("torch."), None)
    elif isinstance(wanted, str):
        return "8bit"
    if wanted is None or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    names = " or ".join(map(repr, _CODECS))
    raise ValueError(
        f"Invalid momentum_dtype value: {wanted!r}, because it must be a floating-point torch.dtype or its name ('bfloat16'), or {names}"
    )


def codec_for(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    wanted: MomentumDtype | None,
    held: tuple[int, ...] | None = None,
    row: int | None = None,
    lead: int = 0,
) -> Codec:
    """How the first moment of a parameter is kept.

    Args:
        shape: Shape of the whole parameter.
        dtype: Its dtype.
        wanted: What the optimizer was asked for; None for the parameters' dtype.
        held: Shape of what this rank holds of it. [default: all of it]
        row: Elements of a row of what is held, where its shape does not say.
        lead: Elements before the first whole row of that.

    Example:
        >>> [codec_for((n,), torch.float32, "8bit").name for n in (4095, 4096)]
        ['float32', '8bit']
    """
    here = shape if held is None else held
    if wanted is None or isinstance(wanted, torch.dtype):
        return Plain(here, dtype if wanted is None else wanted)
    return _coded(shape, dtype, wanted, here, row, lead)


@lru_cache(maxsize=65536)
def _coded(shape: tuple[int, ...], dtype: torch.dtype, wanted: str, held: tuple[int, ...], row: int | None, lead: int) -> Codec:
    return Plain(held, dtype) if math.prod(shape) < SMALLEST else _CODECS[wanted](held, row, lead)


def codec_of(kept: Mapping[str, Tensor]) -> Codec:
    """How a moment was kept, of any version of this package.

    Args:
        kept: The tensors of a moment, by what was added to its name.

    Raises:
        ValueError: If they do not belong together.
    """
    moment = kept[""]
    shape = tuple(moment.shape)
    if SCALE not in kept:
        if not moment.is_floating_point():
            raise ValueError(f"holds codes ({moment.dtype}), but has no scales")
        return Plain(shape, moment.dtype)
    if moment.dtype != torch.int8 or kept[SCALE].dtype != torch.float32:
        raise ValueError(f"has scales, but is {moment.dtype} with scales in {kept[SCALE].dtype}, and not int8 with float32")
    scales = tuple(kept[SCALE].shape)
    # In states of earlier versions runs go on over the ends of rows.
    for codec in (EightBit(shape), EightBit(shape, moment.numel())):
        if codec.fields[SCALE].shape == scales:
            return codec
    raise ValueError(f"has scales of shape {scales}, but for a tensor of shape {shape} there are {EightBit(shape).fields[SCALE].shape}")


def leading_dims(shape: Sequence[int]) -> int:
    """How many of a tensor's first dimensions tell rows apart."""
    return _rows_of(tuple(shape))[0]


def row_of(shape: Sequence[int]) -> int:
    """Elements of a row: of the last dimension, and of those before it until there are 64, but not of the first.

    Lines of fewer than 8 elements are no rows: the tensor is one.

    Example:
        >>> [row_of(shape) for shape in ((50257, 64), (64, 32, 3, 3), (8, 512, 128), (5000,), (10000, 3))]
        [64, 288, 128, 5000, 30000]
    """
    return _rows_of(tuple(shape))[1]


def _rows_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many of the first dimensions tell rows apart, and the elements of one."""
    row, leading = 1, len(shape)
    while leading > 1 and row < _LONG:
        leading -= 1
        row *= shape[leading]
    return (leading, row) if len(shape) > 1 and row >= _SHORTEST else (0, math.prod(shape))


def _lines(shape: tuple[int, ...], elements: int) -> Iterator[slice]:
    """Ranges of the first dimension of about so many elements."""
    length = shape[0] if shape else 1
    by = max(elements // max(math.prod(shape[1:]), 1), 1)
    for begin in range(0, length, by):
        yield slice(begin, min(begin + by, length))
