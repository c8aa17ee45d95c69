"""Made-up inputs for a module alone: what its forward takes, by the names of its arguments and the widths of its layers.

No two sizes that matter are equal (batch, tokens, and every number that the module itself has), so that what depends on what is not mixed
up with what merely has the same size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import isqrt, prod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_adam_mini.detection.graph import GRAPH_ARGUMENTS
from lightning_adam_mini.detection.layers import is_conv, is_embedding, is_linear, line_axis
from lightning_adam_mini.detection.names import own_parameter, words

Shape = tuple[int, ...]
Path = tuple[int, ...]

_PRIMES = [n for n in range(3, 1000) if all(n % d for d in range(2, isqrt(n) + 1))]
_FEW = 8  # whole numbers in a list that are settings, and no data
GRID = (8, 16)  # height and width of an image or a feature map
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


def plain(made: Made) -> Any:
    """The value of an argument that is no tensor."""
    return [] if made.value == () else made.value


class Maker:
    """Makes the arguments of one module.

    Attributes:
        batch: The number of samples.
        groups: A number for one more dimension.
        widths: How many features layers read, likeliest first.
        settings: The whole numbers among the attributes of its modules.
    """

    def __init__(self, module: nn.Module, device: str) -> None:
        """Args: the module, and where the inputs are made."""
        self._device = device
        settings = {n for inner in module.modules() for n in _whole(vars(inner).values())}
        numbers = settings.union(*(p.shape for p in module.parameters()))
        free = [prime for prime in _PRIMES if prime not in numbers] or [1009]
        free += [free[-1]] * 3
        self.batch, self._tokens, self.groups = free[:3]
        widths = Counter(_widths(module))  # in the order in which they come
        first = next(iter(widths), 1)
        self.widths = sorted(widths, key=lambda width: (width != first, -widths[width]))[:5]
        self.settings = sorted(settings)
        self._fewest = min((m.weight.shape[0] for m in module.modules() if is_embedding(m) and isinstance(m.weight, Tensor)), default=2)
        layers = [m for m in module.modules() if is_embedding(m) or is_linear(m) or is_conv(m)]
        self._entries = layers[0].weight.shape[0] if layers and is_embedding(layers[0]) and isinstance(layers[0].weight, Tensor) else 0
        self._spatial = next((m.weight.dim() - 2 for m in layers if is_conv(m) and isinstance(m.weight, Tensor)), 0)
        self._is_image = bool(layers) and is_conv(layers[0])
        self._kinds: list[Shape] = []

    def kinds(self, names: list[str]) -> list[Shape]:
        """Shapes of features, 0 for the width: tokens, images, images of channels last; the likeliest first."""
        batch, (high, wide) = self.batch, GRID
        grids = {1: (high * wide,), 2: GRID, 3: (high // 2, high, wide)}
        image = (batch, 0, *grids.get(self._spatial, GRID))
        sized = any(not _SIDES.isdisjoint(words(name)) for name in names[1:])
        first = [image, (batch, high * wide if sized else self._tokens, 0)]
        rest = [(batch, *GRID, 0), (batch, self.groups, self._tokens, 0), (batch, 0, self._tokens)]
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
            return plain(made)
        if made.dtype.is_floating_point:
            tensor = torch.rand(made.shape, device=self._device)
        elif made.dtype is torch.bool:
            tensor = torch.zeros(made.shape, device=self._device, dtype=torch.bool)
        else:
            tensor = torch.arange(prod(made.shape), device=self._device).view(made.shape) % made.value
        leaves.append((path, tensor))
        return tensor

    def features(self) -> Iterator[Shape]:
        """Shapes of features of all kinds and widths."""
        return (tuple(side or width for side in kind) for width in self.widths for kind in self._kinds)

    def indices(self, shape: Shape) -> Made:
        """Whole numbers that every table has."""
        return Made(torch.long, shape, self._fewest)

    def floats(self, shape: Shape) -> Made:
        """Numbers between 0 and 1."""
        return Made(torch.float32, shape)

    def first(self, name: str, place: int) -> Made:
        """What the argument called ``name`` likeliest is."""
        return next(self.choices(name, place, self._kinds[0]))

    def others(self, name: str, place: int) -> list[Made]:
        """Whatever the argument called ``name`` may be, likeliest first."""
        batch = self.batch
        found = [Made(value=None)] if place else []
        found += [made for kind in self._kinds for made in self.choices(name, place, kind)]
        found += [self.floats((batch, width)) for width in self.widths]
        found += [self.floats((batch, self.groups, width, *GRID)) for width in self.widths[:1]]
        found += [self.indices((batch, self._tokens)), self.indices((batch,)), Made(value=None), Made(value=2)]
        return list(dict.fromkeys(found))

    def _of_graph(self, named: set[str], place: int) -> Iterator[Made]:
        """What an argument may be where nodes are as many as tokens, and edges as groups."""
        nodes, edges = self._tokens, self.groups
        if {"edge", "edges", "index"} & named and not {"attr", "weight", "weights", "features", "feat", "type"} & named:
            yield Made(torch.long, (2, edges), nodes)
        elif not {"adj", "adjacency", "a", "mat", "t"}.isdisjoint(named):
            yield self.floats((nodes, nodes))
        elif "batch" in named:
            yield Made(torch.long, (nodes,), 1)
        elif self._entries and not place:
            yield Made(torch.long, (nodes,), self._entries)
        yield from (self.floats((edges if "edge" in named else nodes, width)) for width in self.widths or (1,))

    def choices(self, name: str, place: int, kind: Shape) -> Iterator[Made]:
        """What the argument called ``name`` may be, where features are of a ``kind``."""
        named, batch = set(words(name)), self.batch
        features = [tuple(side or width for side in kind) for width in self.widths] or [tuple(side or 1 for side in kind)]
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
            yield self.floats((batch,))
            yield from (self.floats((batch, width)) for width in self.widths)
            yield Made(torch.long, (batch,), 2)
        elif place and not _SIDES.isdisjoint(named):
            yield Made(value=GRID[0] if {"h", "height"} & named else GRID[1] if {"w", "width"} & named else GRID)
        elif self._entries and (not place or not _TEXTS.isdisjoint(named)):
            yield Made(torch.long, (batch, length), self._entries)
            yield from map(self.floats, features)
        else:
            yield from map(self.floats, features)
            if place:
                yield from (Made(value=value) for value in (None, ()))
                yield from (self.floats((batch, width)) for width in self.widths)


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
        elif isinstance(value, (tuple, list)) and len(value) <= _FEW:
            whole = [v for v in value if isinstance(v, int)]
            yield from (*whole, prod(whole))
