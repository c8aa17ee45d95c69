"""Made-up inputs for a module alone: what its forward takes, by the names of its arguments and the widths of its layers.

No two sizes that matter are equal (batch, tokens, and every number that the module itself has), so that what depends on what is not mixed
up with what merely has the same size. Several calls are proposed, likeliest first; a wrong one fails at once, for nothing is computed on
the meta device.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_adam_mini.detection.layers import is_conv, is_embedding, is_linear, line_axis
from lightning_adam_mini.detection.names import own_parameter, words

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""

_MOST = 40  # calls of one kind to try
_COMBINATIONS = 100_000
_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43)
_GRID = (8, 16)  # height and width of an image or a feature map
_MASKS = frozenset({"mask", "masks", "bias", "biases", "cache", "past", "state", "padding", "dropout", "is", "need", "return", "use"})
_PLACES = frozenset({"start", "offset", "idx", "index", "i"})
_TIMES = frozenset({"t", "time", "timestep", "timesteps", "times", "sigma", "sigmas", "noise", "step", "steps", "temb", "labels", "label"})
_SIDES = frozenset({"h", "w", "height", "width", "hw", "size", "shape", "resolution"})
_LENGTHS = frozenset(
    {"length", "len", "tokens", "patches", "positions", "block", "context", "window", "resolution", "points"}
    | {"ctx", "seq", "n", "t", "area"}
)


def made_up_calls(module: nn.Module, device: str) -> Iterator[Call]:
    """Calls of ``module`` that may suit its forward, likeliest first."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # TorchScript
        return
    names = [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keywords = [p.name for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
    if not names and not keywords:
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)][:1]
    maker = _Maker(module, device)
    for shapes in maker.kinds(names):
        choices = [list(maker.choices(name, place, shapes)) for place, name in enumerate([*names, *keywords])]
        # The likeliest of each first, the same width everywhere before different ones.
        ranks = list(product(*(range(len(options)) for options in choices))) if prod(map(len, choices)) <= _COMBINATIONS else []
        ranks.sort(key=lambda rank: (len(set(rank)), sum(rank)))
        for rank in ranks[:_MOST]:
            values = [options[at] for options, at in zip(choices, rank, strict=True)]
            yield tuple(values[: len(names)]), dict(zip(keywords, values[len(names) :], strict=True))


class _Maker:
    """Makes the arguments of one module."""

    def __init__(self, module: nn.Module, device: str) -> None:
        self._device = device
        numbers = set(_numbers(module))
        free = [prime for prime in _PRIMES if prime not in numbers]
        self._batch, self._tokens, self._groups = free[:3]
        widths = Counter(_widths(module))  # in the order in which they come
        first = next(iter(widths), 1)
        self._widths = sorted(widths, key=lambda width: (width != first, -widths[width]))[:5]
        self._lengths = list(dict.fromkeys(n for n in _lengths(module) if n > 1))
        layers = [m for m in module.modules() if is_embedding(m) or is_linear(m) or is_conv(m)]
        self._entries = layers[0].weight.shape[0] if layers and is_embedding(layers[0]) and isinstance(layers[0].weight, Tensor) else 0
        self._spatial = next((m.weight.dim() - 2 for m in layers if is_conv(m) and isinstance(m.weight, Tensor)), 0)
        self._is_image = bool(layers) and is_conv(layers[0])

    def kinds(self, names: list[str]) -> list[list[tuple[int, ...]]]:
        """Shapes of a batch of features, 0 for the width: tokens, images, images of channels last; the likeliest kind first."""
        batch, (high, wide) = self._batch, _GRID
        grids = {1: (high * wide,), 2: _GRID, 3: (high // 2, high, wide)}
        image = [(batch, 0, *grids.get(self._spatial, _GRID))]
        sized = any(not _SIDES.isdisjoint(words(name)) for name in names[1:])
        tokens = [[(batch, high * wide if sized else self._tokens, 0)], *([(batch, length, 0)] for length in self._lengths[:4])]
        images = [image, *([(batch, 0, side, side)] for side in self._lengths[:2] if self._spatial == 2)]
        rest = [[(batch, *_GRID, 0)], [(batch, self._groups, self._tokens, 0)], [(batch, 0, self._tokens)]]
        return [*images, *tokens, *rest] if self._is_image else [*tokens[:1], *images[:1], *tokens[1:], *images[1:], *rest]

    def choices(self, name: str, place: int, shapes: list[tuple[int, ...]]) -> Iterator[Any]:
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
            yield torch.arange(batch * length, device=self._device).view(batch, length) % self._entries
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


def _lengths(module: nn.Module) -> Iterator[int]:
    """Numbers of tokens that ``module`` may insist on: what it calls a length, a window or a resolution."""
    for inner in module.modules():
        for name, value in vars(inner).items():
            if name.startswith("_") or _LENGTHS.isdisjoint(words(name)):
                continue
            sides = value if isinstance(value, (tuple, list)) else (value,)
            if sides and all(isinstance(side, int) and not isinstance(side, bool) and 1 < side <= 1024 for side in sides):
                count = prod(sides)
                yield from (count, count * count) if len(sides) == 1 and count <= 32 else (count,)
        for table in inner._buffers.values():  # of places of tokens to each other
            if table is not None and table.dim() >= 2 and table.shape[-1] == table.shape[-2]:
                yield table.shape[-1]
        for parameter in inner._parameters.values():
            # A bare table has one row per token, or per token and head.
            if parameter is not None and parameter.dim() >= 2 and not (is_linear(inner) or is_conv(inner) or is_embedding(inner)):
                yield from (size for size in parameter.shape[:-1] if size > 1)


def _numbers(module: nn.Module) -> Iterator[int]:
    for inner in module.modules():
        yield from _whole(vars(inner).values())
        for parameter in inner._parameters.values():
            if parameter is not None:
                yield from parameter.shape


def _whole(values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, int):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from (v for v in value if isinstance(v, int))
