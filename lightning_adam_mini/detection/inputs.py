"""Made-up inputs for a module alone: what its forward takes, by the names of its arguments and the widths of its layers.

No two sizes that matter are equal (batch, tokens, and every number that the module itself has), so that what depends on what is not mixed
up with what merely has the same size. Several calls are proposed, likeliest first; a wrong one fails at once, for nothing is computed on
the meta device.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from itertools import islice, product
from math import isqrt, prod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_adam_mini.detection.layers import is_conv, is_embedding, is_linear, line_axis
from lightning_adam_mini.detection.names import words

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""

_MOST = 96  # calls to try
_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43)
_GRID = (8, 16)  # height and width of an image or a feature map
_MASKS = frozenset({"mask", "masks", "bias", "cache", "past", "state", "padding", "dropout", "is", "need", "return", "use"})
_TIMES = frozenset({"t", "time", "timestep", "timesteps", "times", "sigma", "sigmas", "noise", "step", "steps", "temb", "labels", "label"})
_SIDES = frozenset({"h", "w", "height", "width", "H", "W", "hw", "size", "shape", "resolution"})
_LENGTHS = frozenset(
    {
        "length",
        "len",
        "tokens",
        "patches",
        "positions",
        "block",
        "context",
        "window",
        "resolution",
        "points",
        "ctx",
        "seq",
        "n",
        "t",
        "area",
    }
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
    yield from islice(_Maker(module, device).calls(names, keywords), _MOST)


class _Maker:
    """Makes the arguments of one module."""

    def __init__(self, module: nn.Module, device: str) -> None:
        self._device = device
        numbers = set(_numbers(module))
        self._free = [prime for prime in _PRIMES if prime not in numbers]
        self._batch, self._tokens, self._others = self._free[0], self._free[1], self._free[2]
        self._widths = list(dict.fromkeys(_widths(module)))[:6]
        self._lengths = [self._tokens, *dict.fromkeys(_lengths(module))][:5]
        first = next((m for m in module.modules() if is_embedding(m) or is_linear(m) or is_conv(m)), None)
        self._entries = first.weight.shape[0] if first is not None and is_embedding(first) and isinstance(first.weight, Tensor) else 0
        self._spatial = next((m.weight.dim() - 2 for m in module.modules() if is_conv(m) and isinstance(m.weight, Tensor)), 0)
        self._conv_first = first is not None and is_conv(first)

    def calls(self, names: list[str], keywords: list[str]) -> Iterator[Call]:
        for grid in (False, True) if len(names) < 3 or not self._has_sides(names) else (True,):
            for length in [prod(_GRID)] if grid and self._has_sides(names) else self._lengths:
                choices = [list(self._choices(name, i, length, grid)) for i, name in enumerate([*names, *keywords])]
                for values in product(*choices):
                    widths = {v.shape for v in values if isinstance(v, Tensor) and v.dim() > 1}
                    if len(widths) <= 3:
                        yield values[: len(names)], dict(zip(keywords, values[len(names) :], strict=True))
                if grid:
                    break

    @staticmethod
    def _has_sides(names: list[str]) -> bool:
        return any(not _SIDES.isdisjoint(words(name)) for name in names[1:])

    def _choices(self, name: str, place: int, length: int, grid: bool) -> Iterator[Any]:
        named = set(words(name))
        if place and not _MASKS.isdisjoint(named):
            yield None
            yield torch.ones(length, length, device=self._device, dtype=torch.bool)
        elif place and not _TIMES.isdisjoint(named):
            yield torch.rand(self._batch, device=self._device)
            yield torch.ones(self._batch, device=self._device, dtype=torch.long)
            for width in self._widths:
                yield self._rand(self._batch, width)
        elif place and not _SIDES.isdisjoint(named):
            yield _GRID[0] if {"h", "height"} & named else _GRID[1] if {"w", "width"} & named else _GRID
        elif self._entries and (not place or "ids" in named or "tokens" in named):
            yield torch.arange(self._batch * length, device=self._device).view(self._batch, length) % self._entries
            yield from self._features(length, grid)
        else:
            yield from self._features(length, grid)
            if place:
                yield None

    def _features(self, length: int, grid: bool) -> Iterator[Tensor]:
        for width in self._widths:
            if grid and self._spatial == 1:
                yield self._rand(self._batch, width, _GRID[0] * _GRID[1])
            elif grid and self._spatial == 3:
                yield self._rand(self._batch, width, _GRID[0] // 2, *_GRID)
            elif grid:
                yield self._rand(self._batch, width, *_GRID)
            else:
                yield self._rand(self._batch, length, width)
        if grid:
            for width in self._widths:
                yield self._rand(self._batch, *_GRID, width)

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self._device)


def _widths(module: nn.Module) -> Iterator[int]:
    """How many features the layers of ``module`` read, first layer first."""
    for inner in module.modules():
        weight = inner._parameters.get("weight") if isinstance(inner, nn.Module) else None
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
        for parameter in inner._parameters.values():
            # A table of positions has one row a token.
            if parameter is not None and parameter.dim() == 3 and parameter.shape[0] == 1 and isqrt(parameter.shape[1]) > 1:
                yield parameter.shape[1]


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
