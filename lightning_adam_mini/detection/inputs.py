"""Made-up inputs for a module alone: what its forward takes, by the names of its arguments and the widths of its layers.

No two sizes that matter are equal (batch, tokens, and every number that the module itself has), so that what depends on what is not mixed
up with what merely has the same size. Several calls are proposed, likeliest first. A wrong one fails at once, with an error that says which
size, kind of number or number of dimensions was met and which is wanted: such calls are mended and proposed again.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import product
from math import isqrt, prod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_adam_mini.detection.layers import is_conv, is_embedding, is_linear, line_axis
from lightning_adam_mini.detection.names import own_parameter, words

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""
Shapes = list[tuple[int, ...]]
"""Shapes of a batch of features, 0 for the width."""

_MOST = 40  # calls of one kind to try
_MOST_LENGTHS = 40  # calls with numbers of tokens that errors asked for
_LONGEST = 1024  # the most tokens, and the longest side of an image
_COMBINATIONS = 100_000
_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43)
_MOST_MENDED = 100  # calls with arguments that errors asked for
_SAME = 6  # calls that fail with the same error and are followed up
_LARGEST = 1 << 20  # elements of an argument
_SQUARES = (16, 32, 64)  # sides of images that may be larger than they must
# Errors about a size: what it was, what it must be, and whether it may be the other way round.
_MISMATCHES = (
    (re.compile(r"\(\d+x(\d+) and (\d+)x\d+\)"), False),
    (re.compile(r"tensor a \((\d+)\) must match the size of tensor b \((\d+)\)"), True),
    (re.compile(r"[Ee]xpected size (\d+) but got size (\d+)"), True),
    (re.compile(r"[Ee]xpected (\d+), got (\d+)"), True),
    (re.compile(r"to have (\d+) channels, but got (\d+)"), True),
    (re.compile(r"should contain (\d+) elements not (\d+)"), False),
    (re.compile(r"shape \[\*, (\d+)\], but got input of size\s*\[(?:\d+, )*(\d+)\]"), True),
)
_DIMENSIONS = re.compile(r"unpack \(expected (\d)|xpected (\d)D|must be a (?:matrix|2D)|same number of dimensions: got (\d)")
_NOT_WHOLE = re.compile(r"scalar types: Long|used as indices|dtype Long|Long tensor|must be Long|expected scalar type Long")
_GRID = (8, 16)  # height and width of an image or a feature map
_MASKS = frozenset({"mask", "masks", "bias", "biases", "cache", "past", "state", "padding", "dropout", "is", "need", "return", "use"})
_PLACES = frozenset({"start", "offset", "idx", "index", "i"})
_TIMES = frozenset({"t", "time", "timestep", "timesteps", "times", "sigma", "sigmas", "noise", "step", "steps", "temb", "labels", "label"})
_SIDES = frozenset({"h", "w", "height", "width", "hw", "size", "shape", "resolution"})


def made_up_calls(module: nn.Module, device: str, failed: list[str] | None = None) -> Iterator[Call]:
    """Calls of ``module`` that may suit its forward, likeliest first.

    Args:
        module: The module.
        device: Where the inputs are made.
        failed: Why the last call failed, to be taken from it: a module that insists on a number of tokens says so.
    """
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # TorchScript
        return
    names = [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keywords = [p.name for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
    if not names and not keywords:
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)][:1]
    maker = _Maker(module, device)

    def options(shapes: Shapes) -> list[list[Any]]:
        return [list(maker.choices(name, place, shapes)) for place, name in enumerate([*names, *keywords])]

    def call(values: list[Any]) -> Call:
        return tuple(values[: len(names)]), dict(zip(keywords, values[len(names) :], strict=True))

    seeds: list[tuple[list[Any], str]] = []
    for kind in maker.kinds(names):
        counts = list(map(len, options(kind)))
        # The likeliest of each first, the same width everywhere before different ones.
        ranks = list(product(*map(range, counts))) if prod(counts) <= _COMBINATIONS else []
        ranks.sort(key=lambda rank: (len(set(rank)), sum(rank)))
        for rank in ranks[:_MOST]:
            todo = deque([kind])
            while todo:
                shapes = todo.popleft()
                values = [some[at] for some, at in zip(options(shapes), rank, strict=True)]
                yield call(values)
                if failed:
                    seeds.append((values, failed.pop()))
                    todo.extend(maker.wanted(shapes[0], rank, seeds[-1][1]))
    for seed in seeds:  # none was right as it stood
        mended = deque(maker.mended(*seed))
        while mended:
            values = mended.popleft()
            yield call(values)
            mended.extend(maker.mended(values, failed.pop()) if failed else ())


def _mismatches(error: str) -> Iterator[tuple[int, int]]:
    """Sizes that an error names: the one that it met, and the one that it wants."""
    for pattern, is_mutual in _MISMATCHES:
        for one, other in pattern.findall(error):
            yield int(one), int(other)
            if is_mutual:
                yield int(other), int(one)


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
        self._met: set[tuple[int, tuple[int, ...]]] = set()
        self._mended: set[object] = set()
        self._errors: Counter[str] = Counter()
        self._fewest = min((m.weight.shape[0] for m in module.modules() if is_embedding(m) and isinstance(m.weight, Tensor)), default=2)
        layers = [m for m in module.modules() if is_embedding(m) or is_linear(m) or is_conv(m)]
        self._entries = layers[0].weight.shape[0] if layers and is_embedding(layers[0]) and isinstance(layers[0].weight, Tensor) else 0
        self._spatial = next((m.weight.dim() - 2 for m in layers if is_conv(m) and isinstance(m.weight, Tensor)), 0)
        self._is_image = bool(layers) and is_conv(layers[0])

    def kinds(self, names: list[str]) -> list[Shapes]:
        """Tokens, images, images of channels last; the likeliest kind first."""
        batch, (high, wide) = self._batch, _GRID
        grids = {1: (high * wide,), 2: _GRID, 3: (high // 2, high, wide)}
        image = [(batch, 0, *grids.get(self._spatial, _GRID))]
        sized = any(not _SIDES.isdisjoint(words(name)) for name in names[1:])
        first = [image, [(batch, high * wide if sized else self._tokens, 0)]]
        rest = [[(batch, *_GRID, 0)], [(batch, self._groups, self._tokens, 0)], [(batch, 0, self._tokens)]]
        return [*(first if self._is_image else reversed(first)), *rest]

    def wanted(self, shape: tuple[int, ...], rank: tuple[int, ...], error: str) -> Iterator[Shapes]:
        """Features of as many tokens as an error about those of ``shape`` asked for, or as a setting says; or an image of as many."""
        tokens = prod(side for side in shape[1:] if side)
        sizes = [int(size) for size in re.findall(r"\d+", error)]
        areas = [*sizes, *self._settings] if tokens in sizes else []
        if len(shape) == 4 and (found := re.search(r"\((\d+)\) must match .*\((\d+)\)", error)):
            ours, theirs = map(int, found.groups())  # patches, perhaps with one token more
            areas += [tokens * (theirs - more) // (ours - more) for more in (0, 1) if ours > more]
        for size in areas:
            if (size, rank) not in self._met and 1 < size <= _LONGEST**2 and size != tokens and len(self._met) < _MOST_LENGTHS:
                self._met.add((size, rank))
                side = isqrt(size)
                if len(shape) == 4 and side**2 == size:
                    yield [(self._batch, 0, side, side)]
                elif size <= _LONGEST:
                    yield [(self._batch, size, 0)]

    def mended(self, values: list[Any], error: str) -> Iterator[list[Any]]:
        """The arguments with another shape of one of them, or whole numbers in it, as the error asks for."""
        self._errors[error] += 1
        for place, value in enumerate(values if self._errors[error] <= _SAME else ()):
            for shape, is_index in self._other_shapes(value, error) if isinstance(value, Tensor) else ():
                made = self._indices(shape, self._fewest) if is_index else self._rand(shape)
                mended = [*values[:place], made, *values[place + 1 :]]
                key = tuple((tuple(v.shape), v.dtype) if isinstance(v, Tensor) else None for v in mended)
                if key not in self._mended and len(self._mended) < _MOST_MENDED and 0 < prod(shape) <= _LARGEST:
                    self._mended.add(key)
                    yield mended

    def _other_shapes(self, value: Tensor, error: str) -> Iterator[tuple[tuple[int, ...], bool]]:
        """Shapes that ``value`` may have instead, and whether of whole numbers."""
        shape, is_index = tuple(value.shape), not value.is_floating_point()
        if _NOT_WHOLE.search(error) and not is_index:
            yield from ((shape[:-1], True), (shape[:1], True)) if len(shape) == 3 else ((shape[:1], True), (shape[:2], True))
        changed = False
        for got, wanted in _mismatches(error):
            for dim in [d for d in reversed(range(1, len(shape))) if shape[d] == got]:
                changed = True
                yield (*shape[:dim], wanted, *shape[dim + 1 :]), is_index
        if found := _DIMENSIONS.search(error):
            wanted = int(next(filter(None, found.groups()), 2))
            more = wanted - len(shape)
            fewer = ((shape[0], *shape[1 - more :]), shape[-more:]) if more < 0 else ()
            yield from ((other, is_index) for other in (fewer or [(shape[0], *[self._groups] * more, *shape[1:])]))
        elif len(shape) >= 4 and not changed:
            areas = [prod(shape[-2:]) * wanted / got for got, wanted in _mismatches(error) if got]
            sides = [isqrt(int(area)) for area in areas if area == isqrt(int(area)) ** 2]
            yield from (((*shape[:-2], side, side), is_index) for side in (*sides, *_SQUARES))

    def _indices(self, shape: tuple[int, ...], entries: int) -> Tensor:
        return torch.arange(prod(shape), device=self._device).view(shape) % entries

    def choices(self, name: str, place: int, shapes: Shapes) -> Iterator[Any]:
        """What the argument called ``name`` may be."""
        named, batch = set(words(name)), self._batch
        features = [tuple(side or width for side in shape) for width in self._widths for shape in shapes]
        length = next((side for side in shapes[0][1:] if side), self._tokens)
        if place and not _PLACES.isdisjoint(named):
            yield 0
        elif place and not _MASKS.isdisjoint(named):
            yield None
            yield torch.zeros(length, length, device=self._device, dtype=torch.bool)
            yield torch.zeros(batch, length, device=self._device, dtype=torch.bool)
            yield []
        elif place and not _TIMES.isdisjoint(named):
            yield torch.rand(batch, device=self._device)
            yield from (self._rand((batch, width)) for width in self._widths)
            yield torch.ones(batch, device=self._device, dtype=torch.long)
        elif place and not _SIDES.isdisjoint(named):
            yield _GRID[0] if {"h", "height"} & named else _GRID[1] if {"w", "width"} & named else _GRID
        elif self._entries and (not place or not {"ids", "tokens", "tgt", "trg", "target", "y"}.isdisjoint(named)):
            yield self._indices((batch, length), self._entries)
            yield from map(self._rand, features)
        else:
            yield from map(self._rand, features)
            if place:
                yield None
                yield []
                yield from (self._rand((batch, width)) for width in self._widths)

    def _rand(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, device=self._device)


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
