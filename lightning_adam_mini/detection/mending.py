"""Mending made-up inputs: which argument of a call that failed may have to be what instead.

Of a call that does not suit it is known how far it came, which of its inputs led to the failure, and from the error which size, kind of
number or number of dimensions was met and which is wanted. Such inputs are mended, in the call that came farthest first.
"""

from __future__ import annotations

import heapq
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import isqrt, prod

import torch
from torch import nn

from lightning_adam_mini.detection.evidence import Failure
from lightning_adam_mini.detection.inputs import GRID, Call, Made, Maker, MissingError, Path, Shape, plain

_MOST = 300  # calls to try
_TURN = 4  # of so many calls one is the least odd of all
_SAME = 40  # calls made because of one error that end in the same one
_LONG = 128  # a size that is hardly wanted
_LONGEST = 1024  # the most tokens, and the longest side of an image
_LARGEST = 1 << 20  # elements of an argument
_SQUARES = (8, 12, 16, 24, 32, 64)  # sides of images that may have to be square
# Errors about two sizes: the one that was met, and the one that is wanted, by name; of `a` and `b` either may be either.
_MISMATCHES = [
    re.compile(pattern)
    for pattern in (
        r"\(\d+x(?P<met>\d+) and (?P<wanted>\d+)x\d+\)",
        r"reduction dim, but got \[\d+, (?P<met>\d+)\] X \[(?P<wanted>\d+), \d+\]",
        r"to have (?P<wanted>\d+) channels, but got (?P<met>\d+)",
        r"[Ee]xpected (?P<wanted>\d+), got (?P<met>\d+)",
        r"dimension of (?P<wanted>\d+), but got (?P<met>\d+)",
        r"should contain (?P<met>\d+) elements not (?P<wanted>\d+)",
        r"shape \[\*, (?P<wanted>\d+)\], but got input of size\s*\[(?:\d+, )*(?P<met>\d+)\]",
        r"tensor a \((?P<a>\d+)\) must match the size of tensor b \((?P<b>\d+)\)",
        r"[Ee]xpected size (?P<a>\d+) but got size (?P<b>\d+)",
        r"expanded size of the tensor \((?P<a>\d+)\) must match the existing size \((?P<b>\d+)\)",
    )
]
_BROADCAST = re.compile(r"broadcast a dimension of length (\d+) at -(\d).*broadcastable to \[([\d, ]+)\]", re.DOTALL)
_PAIRS = re.compile(r"\[([\d, ]+)\].*?\[([\d, ]+)\]", re.DOTALL)
_VIEWED = re.compile(r"shape '\[([-\d, ]+)\]' is invalid for input of size (\d+)")
_DIMENSIONS = re.compile(
    r"unpack \(expected (\d)|xpected (?:\dD \(unbatched\) or )?(\d)D|must be a (\d)D|must be a (matrix)"
    r"|len\(dims\) = (\d)|equation \((\d)\) does not match"
)
_SEVERAL_DIMENSIONS = re.compile(r"dimensions: got (\d) and (\d)")
_MORE_DIMENSIONS = re.compile(r"too many indices for tensor of dimension (\d)|range of \[-(\d), ")
_WHOLE = re.compile(
    r"scalar types: Long|used as indices|dtype Long|Long tensor|must be Long|type Long|type LongTensor|int32/int64|must be long"
)
_FLOATING = re.compile(r"Input type \(long|Found Long|found Long|got Long|Long and Float|Long != float|for 'Long'|Long did not match")
_NO_TENSOR = re.compile(r"\b(NoneType|int|list)\b'?(?: object|$)")
_UNPACKED = re.compile(r"values to unpack \(expected (\d)")


class Trials:
    """Calls of ``module`` that may suit its forward, likeliest first. What is said of one that failed decides which come next."""

    def __init__(self, module: nn.Module, device: str) -> None:
        """Args: the module, and where the inputs are made."""
        self._maker = Maker(module, device)
        self._mender = _Mender(self._maker)
        self.ran = False  # then no other call needs mending
        self._best: list[tuple[int, int, int, object, tuple[Made, ...]]] = []
        self._first: list[tuple[int, int, object, tuple[Made, ...]]] = []
        self._met: set[tuple[Made, ...]] = set()
        self._stuck = Counter[object]()
        self._last: object = None
        self._odds = 0
        try:
            parameters = list(inspect.signature(module.forward).parameters.values())
        except (TypeError, ValueError):  # TorchScript
            return
        names = [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        keywords = [p.name for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
        if not names and not keywords:
            names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)][:1]
        self._names, self._positional = (*names, *keywords), len(names)
        for odds, kind in enumerate(self._maker.kinds(names)):
            self._push(tuple(next(self._maker.choices(n, place, kind)) for place, n in enumerate(self._names)), 0, odds)

    def __iter__(self) -> Iterator[Call]:
        tried: set[tuple[Made, ...]] = set()
        while self._best and len(tried) < _MOST:
            # What came farthest may have got there by a wrong turn: now and then the least odd of all.
            is_turn = len(tried) % _TURN == _TURN - 1 and self._first
            self._odds, _, self._last, made = heapq.heappop(self._first) if is_turn else heapq.heappop(self._best)[1:]
            if made not in tried and self._stuck[self._last] < _SAME and not (self.ran and self._last):
                tried.add(made)
                yield self._maker.call(made, self._names, self._positional)

    def failed(self, call: Call, failure: Failure) -> None:
        """Hear why ``call`` failed."""
        place = (failure.progress, type(failure.error), failure.text[:20])
        self._stuck[place] += place == self._last
        for odd, path, other in self._mender.mended(call, failure):
            self._push(_put(call.made, path, other), failure.progress, self._odds + odd, place)

    def _push(self, made: tuple[Made, ...], progress: int, odds: int, because: object = None) -> None:
        if made not in self._met and (sum(map(_elements, made)) <= (_LARGEST if because or odds else 16 * _LARGEST)):
            self._met.add(made)
            heapq.heappush(self._best, (-progress, odds, len(self._met), because, made))
            heapq.heappush(self._first, (odds, len(self._met), because, made))


def _elements(made: Made) -> int:
    return prod(made.shape) if made.dtype is not None else sum(_elements(inner) for _, inner in made.fields or ())


def _at(made: tuple[Made, ...], path: Path) -> Made:
    one = made[path[0]]
    return one if len(path) == 1 else _at(tuple(inner for _, inner in one.fields or ()), path[1:])


def _put(made: tuple[Made, ...], path: Path, other: Made) -> tuple[Made, ...]:
    one, *rest = path
    if rest:
        held = made[one]
        names = [name for name, _ in held.fields or ()]
        inner = _put(tuple(value for _, value in held.fields or ()), tuple(rest), other)
        other = replace(held, fields=tuple(zip(names, inner, strict=True)))
    return (*made[:one], other, *made[one + 1 :])


class _Mender:
    """Says what may be in the place of an argument."""

    def __init__(self, maker: Maker) -> None:
        self._maker = maker

    def mended(self, call: Call, failure: Failure) -> Iterator[tuple[int, Path, Made]]:
        """What may be in the place of which argument: as the error asks, and whatever it may be else; the least odd at 0."""
        error, text, leaves = failure.error, failure.text, call.leaves
        if isinstance(error, MissingError):
            yield from self._fields(call, error)
            return
        if failure.key is not None:
            for number in failure.blamed:
                yield 0, leaves[number][0], Made(fields=((failure.key, self._maker.first(failure.key, 1)),))
            return
        # A tensor is wanted where None is, or what None is compared with.
        held = "NoneType" if "invalid combination of arguments" in text else next(iter(_NO_TENSOR.findall(text)), None)
        for place, made in enumerate(call.made):
            if made.dtype is None and made.fields is None and held == type(plain(made)).__name__:
                yield from self._others(call, (place,), 0)
        blamed = failure.blamed or {number: [tuple(tensor.shape)] for number, (_, tensor) in enumerate(leaves)}
        beside = [shape for shapes in blamed.values() for shape in shapes]
        for number, met in blamed.items():
            path = leaves[number][0]
            yield from ((odd, path, other) for odd, other in self._asked(_at(call.made, path), met, beside, text))
            if (found := _UNPACKED.search(text)) and len(path) == 1:  # perhaps it is not its shape that is unpacked
                several = tuple((str(i), self._maker.first(self._name(call, path), i)) for i in range(int(found[1])))
                yield 3, path, Made(value=tuple, fields=several)
            yield from self._others(call, path, 2)

    def _name(self, call: Call, path: Path) -> str:
        return call.names[path[0]] if len(path) == 1 else (call.made[path[0]].fields or ())[path[1]][0]

    def _fields(self, call: Call, error: MissingError) -> Iterator[tuple[int, Path, Made]]:
        for place, value in enumerate((*call.args, *call.kwargs.values())):
            if value is error.record:
                fields = call.made[place].fields or ()
                yield 0, (place,), Made(fields=(*fields, (error.key, self._maker.first(error.key, len(fields)))))

    def _asked(self, made: Made, met: list[Shape], beside: list[Shape], error: str) -> Iterator[tuple[int, Made]]:
        """What an error asks for in place of an argument that became ``met``, ``beside`` which others were; least odd at 0."""
        if made.dtype is None:
            return
        shape, is_whole = made.shape, not made.dtype.is_floating_point
        if _WHOLE.search(error) and not is_whole:
            yield from ((0, self._maker.indices(other)) for other in dict.fromkeys((shape[:-1], shape[:1], shape[:2], shape)))
            return
        if _FLOATING.search(error) and is_whole:
            yield from ((0, self._maker.floats(other)) for other in (*self._maker.features(), shape))
            return
        if made.dtype is torch.bool and "bool" in error:
            yield 0, replace(made, dtype=torch.float32)
        if made.dtype is torch.bool:
            yield from (
                (0, replace(made, shape=other)) for other in ((self._maker.batch, shape[-1]), (shape[-1], shape[-1])) if other != shape
            )
        if is_whole and ("out of range" in error or "out of bounds" in error):
            yield 0, replace(made, value=max(1, (made.value or 2) // 2))
        known: set[Shape] = set()
        for odd, other in self._asked_shapes(shape, met, beside, error):
            if other not in known and other and max(other) <= _LONGEST and 0 < prod(other) <= _LARGEST:
                known.add(other)
                odd += 3 * (len(other) == len(shape) and other[0] != shape[0] == self._maker.batch)  # inputs are of as many samples
                odd += 2 * (other.count(1) > shape.count(1)) + (len(set(other)) < len(other)) + 2 * (max(other) > max((_LONG, *shape)))
                yield odd, replace(made, shape=other)

    def _asked_shapes(self, shape: Shape, met: list[Shape], beside: list[Shape], error: str) -> Iterator[tuple[int, Shape]]:
        dims, pairs = [*reversed(range(len(shape)))], _mismatches(error)
        fewest = min(map(len, (*beside, *met)))
        for wanted, now in product([*_dimensions(error), *([fewest] if pairs else ())], dict.fromkeys(map(len, met))):
            others = self._deeper(shape, wanted - now) if wanted > now else self._flatter(shape, now - wanted)
            yield from enumerate(others if wanted != now else ())
        for got, wanted in pairs:
            yield from ((1, _with(shape, dim, wanted)) for dim in dims if shape[dim] == got)
        for got, wanted in pairs:
            yield from ((2, other) for other in _resized(shape, got, wanted))
        if found := _VIEWED.search(error):
            sizes = [int(size) for size in re.findall(r"\d+", found[1])]
            here, there = max(1, int(found[2])), max(1, prod(sizes))
            more = enumerate(dims) if "-1" not in found[1] and there % here == 0 else ()
            yield from ((odd, _with(shape, dim, shape[dim] * (there // here))) for odd, dim in more)
            yield from ((0, shape[:dim] + shape[dim + 1 :]) for dim in dims if here % there == 0 and shape[dim] == here // there)
            for size in sizes:
                yield from ((1, _with(shape, dim, -(-shape[dim] // size) * size)) for dim in dims[:-1] if size > 1)
                yield from ((2, _with(shape, dim, size)) for dim in dims)
        sizes = [int(size) for size in re.findall(r"\d+", error)]
        tokens = prod(side for side in shape[1:-1]) if len(shape) < 4 else prod(shape[2:])
        for size in (*sizes, *self._maker.settings) if tokens in sizes else ():
            if 1 < size <= _LONGEST**2 and size != tokens:
                side = isqrt(size)
                if len(shape) == 4 and side**2 == size:
                    yield 2, (*shape[:2], side, side)
                elif len(shape) == 3:
                    yield 2, (shape[0], size, shape[2])
        if len(shape) >= 4:
            yield from ((3, (*shape[:-2], side, side)) for side in _SQUARES)

    def _deeper(self, shape: Shape, more: int) -> Iterator[Shape]:
        yield (*shape[:1], *[self._maker.groups] * more, *shape[1:])
        if len(shape) + more == 4:
            yield from ((self._maker.batch, width, *GRID) for width in self._maker.widths[:1])
        yield (*shape, *[self._maker.groups] * more)

    def _flatter(self, shape: Shape, less: int) -> Iterator[Shape]:
        if less < len(shape):
            yield (shape[0], *shape[1 + less :])
            yield shape[less:]
            yield shape[: len(shape) - less]

    def _others(self, call: Call, path: Path, odd: int) -> Iterator[tuple[int, Path, Made]]:
        found = self._maker.others(self._name(call, path), path[0])
        yield from ((odd + i // 4, path, made) for i, made in enumerate(found))


def _mismatches(error: str) -> list[tuple[int, int]]:
    """Sizes that an error names: the one that it met, and the one that it wants."""
    if far := _BROADCAST.search(error):
        return [(int(far[1]), int(re.findall(r"\d+", far[3])[-int(far[2])]))]
    found = [match.groupdict() for pattern in _MISMATCHES for match in pattern.finditer(error)]
    pairs = [(int(sizes["met"]), int(sizes["wanted"])) for sizes in found if "met" in sizes]
    either = [(int(sizes["a"]), int(sizes["b"])) for sizes in found if "a" in sizes]
    if not found and (lists := _PAIRS.search(error)):
        one, other = ([int(size) for size in re.findall(r"\d+", part)] for part in lists.groups())
        either = [(a, b) for a, b in zip(one, other, strict=False) if a != b]
    return [*pairs, *either, *((b, a) for a, b in either)]


def _dimensions(error: str) -> list[int]:
    """How many dimensions an error wants."""
    if several := _SEVERAL_DIMENSIONS.search(error):
        return [int(number) for number in several.groups()]
    if more := _MORE_DIMENSIONS.search(error):
        return [int(next(filter(None, more.groups()))) + 1]
    found = _DIMENSIONS.search(error)
    number = next(filter(None, found.groups())) if found else None
    return [] if number is None else [2 if number == "matrix" else int(number)]


def _with(shape: Shape, dim: int, size: int) -> Shape:
    return (*shape[:dim], size, *shape[dim + 1 :])


def _resized(shape: Shape, got: int, wanted: int) -> Iterator[Shape]:
    """Shapes with which a size that was ``got`` may be as ``wanted``, where it comes from one of ``shape`` by a factor or a sum."""
    if got <= 0 or got in shape:
        return
    for dim in reversed(range(len(shape))):
        size = shape[dim]
        if size and got % size == 0 and wanted % (got // size) == 0:
            yield _with(shape, dim, wanted // (got // size))
        if size % got == 0:
            yield _with(shape, dim, wanted * (size // got))
    for dim in reversed(range(len(shape))):  # something was joined to it
        if shape[dim] < got and wanted - (got - shape[dim]) > 0:
            yield _with(shape, dim, wanted - (got - shape[dim]))
    if len(shape) >= 4:
        side = isqrt(prod(shape[-2:]) * wanted // got)
        yield from ((*shape[:-2], other, other) for other in (side, side + 1, side - 1) if other > 0)
