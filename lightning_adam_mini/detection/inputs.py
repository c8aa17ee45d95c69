"""Made-up inputs for a module alone: what its forward takes, by the names of its arguments and the widths of its layers.

No two sizes that matter are equal (batch, tokens, and every number that the module itself has), so that what depends on what is not mixed
up with what merely has the same size. A call that does not suit fails, and it is known how far it came, which of its inputs led to that,
and which size, kind of number or number of dimensions was met and which is wanted: such inputs are mended, in the call that came farthest
first.
"""

from __future__ import annotations

import heapq
import inspect
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from math import isqrt, prod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_adam_mini.detection.evidence import Failure
from lightning_adam_mini.detection.graph import GRAPH_ARGUMENTS
from lightning_adam_mini.detection.layers import is_conv, is_embedding, is_linear, line_axis
from lightning_adam_mini.detection.names import own_parameter, words

Shape = tuple[int, ...]
Path = tuple[int, ...]

_MOST = 300  # calls to try
_LONG = 128
_LONGEST = 1024  # the most tokens, and the longest side of an image
_LARGEST = 1 << 20  # elements of an argument
_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43)
_SQUARES = (8, 12, 16, 24, 32, 64)  # sides of images that may have to be square
_TURN = 4
_SAME = 40  # calls made because of one error that end in the same one
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
_GRID = (8, 16)  # height and width of an image or a feature map
_MASKS = frozenset({"mask", "masks", "bias", "biases", "cache", "past", "state", "padding", "dropout", "is", "need", "return", "use"})
_PLACES = frozenset({"start", "offset", "idx", "index", "i"})
_TIMES = frozenset({"t", "time", "timestep", "timesteps", "times", "sigma", "sigmas", "noise", "step", "steps", "temb", "labels", "label"})
_SIDES = frozenset({"h", "w", "height", "width", "hw", "size", "shape", "resolution"})
_TEXTS = frozenset({"ids", "tokens", "tgt", "trg", "target", "y"})


@dataclass(frozen=True)
class Made:
    """A made-up argument: a tensor of ``shape`` and ``dtype``, or else ``value``, or several by name.

    Attributes:
        dtype: Of the tensor; None if it is none.
        shape: Its shape.
        value: What it is in place of a tensor.
        fields: What it is composed of.
    """

    dtype: torch.dtype | None = None
    shape: Shape = ()
    value: Any = None
    fields: tuple[tuple[str, Made], ...] | None = None


class Record(dict[str, Any]):
    """A batch of inputs by name, as items or as attributes."""

    def __missing__(self, key: str) -> Any:
        raise MissingError(self, key)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        return self[key]


class MissingError(KeyError, AttributeError):
    """A batch does not have what is asked for."""

    def __init__(self, record: Record, key: str) -> None:
        """Args: the batch, and what it does not have."""
        super().__init__(key)
        self.record, self.key = record, key


@dataclass
class Call:
    """One way to call a module: the arguments by name, where the values of the first ``positional`` go by place."""

    made: tuple[Made, ...]
    positional: int
    names: tuple[str, ...]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    leaves: list[tuple[Path, Tensor]] = field(default_factory=list)


class Trials:
    """Calls of ``module`` that may suit its forward, likeliest first. What is said of one that failed decides which come next."""

    def __init__(self, module: nn.Module, device: str) -> None:
        """Args: the module, and where the inputs are made."""
        self._maker = _Maker(module, device)
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
        place = (failure.progress, type(failure.error), str(failure.error)[:20])
        self._stuck[place] += place == self._last
        for odd, path, other in self._maker.mended(call, failure):
            self._push(_put(call.made, path, other), failure.progress, self._odds + odd, place)

    def _push(self, made: tuple[Made, ...], progress: int, odds: int, because: object = None) -> None:
        if made not in self._met:
            self._met.add(made)
            heapq.heappush(self._best, (-progress, odds, len(self._met), because, made))
            heapq.heappush(self._first, (odds, len(self._met), because, made))


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


def _plain(made: Made) -> Any:
    """The value of an argument that is no tensor."""
    return [] if made.value == () else made.value


def _dimensions(error: str) -> list[int]:
    """How many dimensions an error wants."""
    if several := _SEVERAL_DIMENSIONS.search(error):
        return [int(number) for number in several.groups()]
    if more := _MORE_DIMENSIONS.search(error):
        return [int(next(filter(None, more.groups()))) + 1]
    found = _DIMENSIONS.search(error)
    number = next(filter(None, found.groups())) if found else None
    return [] if number is None else [2 if number == "matrix" else int(number)]


class _Maker:
    """Makes the arguments of one module."""

    def __init__(self, module: nn.Module, device: str) -> None:
        self._device = device
        settings = {n for inner in module.modules() for n in _whole(vars(inner).values())}
        numbers = settings.union(*(p.shape for p in module.parameters()))
        free = [prime for prime in _PRIMES if prime not in numbers]
        self._batch, self._tokens, self._groups = free[:3]
        widths = Counter(_widths(module))  # in the order in which they come
        first = next(iter(widths), 1)
        self._widths = sorted(widths, key=lambda width: (width != first, -widths[width]))[:5]
        self._settings = sorted(settings)
        self._fewest = min((m.weight.shape[0] for m in module.modules() if is_embedding(m) and isinstance(m.weight, Tensor)), default=2)
        layers = [m for m in module.modules() if is_embedding(m) or is_linear(m) or is_conv(m)]
        self._entries = layers[0].weight.shape[0] if layers and is_embedding(layers[0]) and isinstance(layers[0].weight, Tensor) else 0
        self._spatial = next((m.weight.dim() - 2 for m in layers if is_conv(m) and isinstance(m.weight, Tensor)), 0)
        self._is_image = bool(layers) and is_conv(layers[0])
        self._kinds: list[Shape] = []

    def kinds(self, names: list[str]) -> list[Shape]:
        """Shapes of features, 0 for the width: tokens, images, images of channels last; the likeliest first."""
        batch, (high, wide) = self._batch, _GRID
        grids = {1: (high * wide,), 2: _GRID, 3: (high // 2, high, wide)}
        image = (batch, 0, *grids.get(self._spatial, _GRID))
        sized = any(not _SIDES.isdisjoint(words(name)) for name in names[1:])
        first = [image, (batch, high * wide if sized else self._tokens, 0)]
        rest = [(batch, *_GRID, 0), (batch, self._groups, self._tokens, 0), (batch, 0, self._tokens)]
        nodes = [(self._tokens, 0)] if any(name in GRAPH_ARGUMENTS for name in names) else []
        self._kinds = [*nodes, *(first if self._is_image else reversed(first)), *rest]
        return self._kinds

    def call(self, made: tuple[Made, ...], names: tuple[str, ...], positional: int) -> Call:
        """The call with these arguments."""
        leaves: list[tuple[Path, Tensor]] = []
        values = [self._make(one, (place,), leaves) for place, one in enumerate(made)]
        kwargs = dict(zip(names[positional:], values[positional:], strict=True))
        return Call(made, positional, names, tuple(values[:positional]), kwargs, leaves)

    def _make(self, made: Made, path: Path, leaves: list[tuple[Path, Tensor]]) -> Any:
        if made.fields is not None and made.value is tuple:
            return tuple(self._make(inner, (*path, i), leaves) for i, (_, inner) in enumerate(made.fields))
        if made.fields is not None:
            return Record({name: self._make(inner, (*path, i), leaves) for i, (name, inner) in enumerate(made.fields)})
        if made.dtype is None:
            return _plain(made)
        if made.dtype.is_floating_point:
            tensor = torch.rand(made.shape, device=self._device)
        elif made.dtype is torch.bool:
            tensor = torch.zeros(made.shape, device=self._device, dtype=torch.bool)
        else:
            tensor = torch.arange(prod(made.shape), device=self._device).view(made.shape) % made.value
        leaves.append((path, tensor))
        return tensor

    def mended(self, call: Call, failure: Failure) -> Iterator[tuple[int, Path, Made]]:
        """What may be in the place of which argument: as the error asks, and whatever it may be else; the least odd at 0."""
        error, text, leaves = failure.error, str(failure.error), call.leaves
        if isinstance(error, MissingError):
            yield from self._fields(call, error)
            return
        if failure.key is not None:
            for number in failure.blamed:
                yield 0, leaves[number][0], Made(fields=((failure.key, self._first(failure.key, 1)),))
            return
        if held := _NO_TENSOR.search(text):
            for place, made in enumerate(call.made):
                if made.dtype is None and made.fields is None and held[1] == type(_plain(made)).__name__:
                    yield from self._others(call, (place,), 0)
        blamed = failure.blamed or {number: [tuple(tensor.shape)] for number, (_, tensor) in enumerate(leaves)}
        beside = [shape for shapes in blamed.values() for shape in shapes]
        for number, met in blamed.items():
            path = leaves[number][0]
            yield from ((odd, path, other) for odd, other in self._asked(_at(call.made, path), met, beside, text))
            if (found := _UNPACKED.search(text)) and len(path) == 1:  # perhaps it is not its shape that is unpacked
                several = tuple((str(i), self._first(self._name(call, path), i)) for i in range(int(found[1])))
                yield 3, path, Made(value=tuple, fields=several)
            yield from self._others(call, path, 2)

    def _name(self, call: Call, path: Path) -> str:
        return call.names[path[0]] if len(path) == 1 else (call.made[path[0]].fields or ())[path[1]][0]

    def _fields(self, call: Call, error: MissingError) -> Iterator[tuple[int, Path, Made]]:
        for place, value in enumerate((*call.args, *call.kwargs.values())):
            if value is error.record:
                held = call.made[place]
                yield 0, (place,), replace(held, fields=(*(held.fields or ()), (error.key, self._first(error.key, len(held.fields or ())))))

    def _asked(self, made: Made, met: list[Shape], beside: list[Shape], error: str) -> Iterator[tuple[int, Made]]:
        """What an error asks for in place of an argument that became ``met``, ``beside`` which others were; least odd at 0."""
        if made.dtype is None:
            return
        shape, is_whole = made.shape, not made.dtype.is_floating_point
        if _WHOLE.search(error) and not is_whole:
            yield from ((0, self._indices(other)) for other in dict.fromkeys((shape[:-1], shape[:1], shape[:2], shape)))
            return
        if _FLOATING.search(error) and is_whole:
            yield from ((0, self._floats(other)) for other in (*self._features(), shape))
            return
        if made.dtype is torch.bool and "bool" in error:
            yield 0, replace(made, dtype=torch.float32)
        if made.dtype is torch.bool:
            yield from ((0, replace(made, shape=other)) for other in ((self._batch, shape[-1]), (shape[-1], shape[-1])) if other != shape)
        if is_whole and ("out of range" in error or "out of bounds" in error):
            yield 0, replace(made, value=max(1, (made.value or 2) // 2))
        known: set[Shape] = set()
        for odd, other in self._asked_shapes(shape, met, beside, error):
            if other not in known and other and max(other) <= _LONGEST and 0 < prod(other) <= _LARGEST:
                known.add(other)
                odd += 3 * (len(other) == len(shape) and other[0] != shape[0] == self._batch)  # inputs are of as many samples
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
            there, rest = divmod(int(found[2]), max(1, prod(sizes)))
            yield from ((0, shape[:dim] + shape[dim + 1 :]) for dim in dims if not rest and shape[dim] == there)
            for size in sizes:
                yield from ((1, _with(shape, dim, -(-shape[dim] // size) * size)) for dim in dims[:-1] if size > 1)
                yield from ((2, _with(shape, dim, size)) for dim in dims)
        sizes = [int(size) for size in re.findall(r"\d+", error)]
        tokens = prod(side for side in shape[1:-1]) if len(shape) < 4 else prod(shape[2:])
        for size in (*sizes, *self._settings) if tokens in sizes else ():
            if 1 < size <= _LONGEST**2 and size != tokens:
                side = isqrt(size)
                if len(shape) == 4 and side**2 == size:
                    yield 2, (*shape[:2], side, side)
                elif len(shape) == 3:
                    yield 2, (shape[0], size, shape[2])
        if len(shape) >= 4:
            yield from ((3, (*shape[:-2], side, side)) for side in _SQUARES)

    def _deeper(self, shape: Shape, more: int) -> Iterator[Shape]:
        yield (*shape[:1], *[self._groups] * more, *shape[1:])
        if len(shape) + more == 4:
            yield from ((self._batch, width, *_GRID) for width in self._widths[:1])
        yield (*shape, *[self._groups] * more)

    def _flatter(self, shape: Shape, less: int) -> Iterator[Shape]:
        if less < len(shape):
            yield (shape[0], *shape[1 + less :])
            yield shape[less:]
            yield shape[: len(shape) - less]

    def _features(self) -> Iterator[Shape]:
        return (tuple(side or width for side in kind) for width in self._widths for kind in self._kinds)

    def _indices(self, shape: Shape) -> Made:
        return Made(torch.long, shape, self._fewest)

    def _floats(self, shape: Shape) -> Made:
        return Made(torch.float32, shape)

    def _first(self, name: str, place: int) -> Made:
        return next(self.choices(name, place, self._kinds[0]))

    def _others(self, call: Call, path: Path, odd: int) -> Iterator[tuple[int, Path, Made]]:
        """Whatever an argument may be."""
        name, place, batch = self._name(call, path), path[0], self._batch
        found = [Made(value=None)] if place else []
        found += [made for kind in self._kinds for made in self.choices(name, place, kind)]
        found += [self._floats((batch, width)) for width in self._widths]
        found += [self._floats((batch, self._groups, width, *_GRID)) for width in self._widths[:1]]
        found += [self._indices((batch, self._tokens)), self._indices((batch,)), Made(value=None), Made(value=2)]
        yield from ((odd + i // 4, path, made) for i, made in enumerate(dict.fromkeys(found)))

    def _of_graph(self, named: set[str], place: int) -> Iterator[Made]:
        """What an argument may be where nodes are as many as tokens, and edges as groups."""
        nodes, edges = self._tokens, self._groups
        if {"edge", "edges", "index"} & named and not {"attr", "weight", "weights", "features", "feat", "type"} & named:
            yield Made(torch.long, (2, edges), nodes)
        elif not {"adj", "adjacency", "a", "mat", "t"}.isdisjoint(named):
            yield self._floats((nodes, nodes))
        elif "batch" in named:
            yield Made(torch.long, (nodes,), 1)
        elif self._entries and not place:
            yield Made(torch.long, (nodes,), self._entries)
        yield from (self._floats((edges if "edge" in named else nodes, width)) for width in self._widths or (1,))

    def choices(self, name: str, place: int, kind: Shape) -> Iterator[Made]:
        """What the argument called ``name`` may be, where features are of a ``kind``."""
        named, batch = set(words(name)), self._batch
        features = [tuple(side or width for side in kind) for width in self._widths] or [tuple(side or 1 for side in kind)]
        length = next((side for side in kind[1:] if side), self._tokens)
        if kind == (self._tokens, 0):  # a graph
            yield from self._of_graph(named, place)
        elif place and not _PLACES.isdisjoint(named):
            yield Made(value=0)
        elif place and not _MASKS.isdisjoint(named):
            yield Made(value=None)
            yield from (Made(torch.bool, shape) for shape in ((length, length), (batch, length)))
            yield Made(value=())
        elif place and not _TIMES.isdisjoint(named):
            yield self._floats((batch,))
            yield from (self._floats((batch, width)) for width in self._widths)
            yield Made(torch.long, (batch,), 2)
        elif place and not _SIDES.isdisjoint(named):
            yield Made(value=_GRID[0] if {"h", "height"} & named else _GRID[1] if {"w", "width"} & named else _GRID)
        elif self._entries and (not place or not _TEXTS.isdisjoint(named)):
            yield Made(torch.long, (batch, length), self._entries)
            yield from map(self._floats, features)
        else:
            yield from map(self._floats, features)
            if place:
                yield from (Made(value=value) for value in (None, ()))
                yield from (self._floats((batch, width)) for width in self._widths)


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


def _widths(module: nn.Module) -> Iterator[int]:
    """How many features the layers of ``module`` read, first layer first."""
    for inner in module.modules():
        weight = own_parameter(inner, "weight")
        if isinstance(weight, Tensor) and weight.dim() >= 2 and (is_linear(inner) or is_conv(inner)):
            yield weight.shape[1 - line_axis(inner)] * (getattr(inner, "groups", 1) if line_axis(inner) == 0 else 1)
        elif isinstance(weight, Tensor) and weight.dim() == 1:
            yield weight.shape[0]
        else:
            for bare in inner._parameters.values():
                if bare is not None and bare.dim() >= 2:
                    yield from (bare.shape[-2], bare.shape[-1])


def _whole(values: Iterable[Any]) -> Iterator[int]:
    """The whole numbers among attributes, those in tuples and lists, and what these are together."""
    for value in values:
        if isinstance(value, int):
            yield value
        elif isinstance(value, (tuple, list)):
            whole = [v for v in value if isinstance(v, int)]
            yield from (*whole, prod(whole))
