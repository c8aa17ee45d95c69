"""A tape: the operations of one forward, which storages they read and wrote, and nothing of the values.

Every tensor is a :class:`Ref`: a view (offset, sizes, strides) into a storage. A view of a tensor is just another Ref into the same
storage, so that views need no operation of their own on the tape and in-place writes into a part of a tensor are seen for what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ref:
    """A tensor as it was: a view into a storage.

    Attributes:
        storage: Number of the storage on its tape.
        offset: First element.
        shape: Sizes.
        stride: Strides.
        dtype: Data type.
    """

    storage: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def is_differentiable(self) -> bool:
        """Whether it holds floating or complex numbers."""
        return self.dtype.is_floating_point or self.dtype.is_complex

    @property
    def end(self) -> int:
        """One past the last element."""
        return self.offset + 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    def select(self, dim: int, index: int) -> Ref:
        """The slice at ``index`` of ``dim``."""
        size = self.shape[dim]
        at = self.offset + self.stride[dim] * (index % max(size, 1))
        return Ref(self.storage, at, _without(self.shape, dim), _without(self.stride, dim), self.dtype)

    def offsets(self) -> Tensor:
        """Where each element lies in the storage, in the shape of the tensor."""
        grid = torch.tensor(self.offset)
        for dim, (size, step) in enumerate(zip(self.shape, self.stride, strict=True)):
            grid = grid + (torch.arange(size) * step).view([-1] + [1] * (len(self.shape) - dim - 1))
        return grid.expand(self.shape)

    def coordinates(self, offsets: Tensor) -> list[Tensor]:
        """The index along each dimension of the elements at ``offsets``; the tensor must be dense."""
        rest = offsets - self.offset
        found = [torch.zeros_like(rest) for _ in self.shape]
        for dim in sorted(range(len(self.shape)), key=lambda d: -self.stride[d]):
            if self.shape[dim] > 1 and self.stride[dim] > 0:
                found[dim] = rest // self.stride[dim]
                rest = rest % self.stride[dim]
        return found


def _without(values: tuple[int, ...], dim: int) -> tuple[int, ...]:
    dim %= len(values)
    return values[:dim] + values[dim + 1 :]


@dataclass(frozen=True, eq=False)
class Node:
    """One operation. ``args`` and ``kwargs`` hold Refs where there were tensors.

    Attributes:
        index: Its place on the tape.
        name: Its name without overload, such as ``aten::mm``.
        function: What to call to do it again.
        args: Positional arguments.
        kwargs: Keyword arguments.
        inputs: All Refs among the arguments.
        written: The Refs among the arguments that it wrote into.
        outputs: The new tensors.
        held: Values of the integer tensors among the arguments.
        module: Path of the innermost module that was running.
    """

    index: int
    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[Ref, ...]
    written: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    held: dict[Ref, Tensor]
    module: str

    @property
    def op(self) -> str:
        """The name without the namespace."""
        return self.name.rsplit("::", 1)[-1]


@dataclass(frozen=True)
class Weight:
    """A parameter of the model: its name and the view that it is."""

    name: str
    ref: Ref


@dataclass
class Tape:
    """What was recorded.

    Attributes:
        nodes: The operations in order, without those that only make views.
        weights: The parameters by number.
        by_storage: Numbers of the parameters in a storage.
        sizes: Bytes of each storage.
        device: Where the model ran.
        unknown: Storages that no recorded operation made.
    """

    nodes: list[Node] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    by_storage: dict[int, list[int]] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    unknown: dict[int, str] = field(default_factory=dict)
    from_input: set[int] = field(default_factory=set)
    from_weight: set[int] = field(default_factory=set)
    _writers: dict[int, list[tuple[int, Ref | None]]] = field(default_factory=dict)
    _readers: dict[int, list[int]] = field(default_factory=dict)

    def add_weight(self, name: str, ref: Ref) -> None:
        """Register a parameter."""
        self.by_storage.setdefault(ref.storage, []).append(len(self.weights))
        self.weights.append(Weight(name, ref))
        self.from_weight.add(ref.storage)

    def add(self, node: Node, factory: bool) -> None:
        """Append an operation; ``factory``: its result does not depend on the values of its arguments."""
        self.nodes.append(node)
        for ref in node.outputs:
            self._writers.setdefault(ref.storage, []).append((node.index, None))
        for ref in node.written:
            self._writers.setdefault(ref.storage, []).append((node.index, ref))
        for storage in {ref.storage for ref in node.inputs}:
            self._readers.setdefault(storage, []).append(node.index)
        if factory:
            return
        touched = {ref.storage for ref in (*node.outputs, *node.written)}
        for origin in (self.from_input, self.from_weight):
            if any(ref.storage in origin for ref in node.inputs):
                origin |= touched

    def writers(self, ref: Ref, before: int) -> Iterable[Node]:
        """The operations that wrote what ``ref`` holds at ``before``."""
        for index, part in self._writers.get(ref.storage, ()):
            if index < before and (part is None or _overlap(part, ref)):
                yield self.nodes[index]

    def readers(self, storage: int, after: int) -> Iterable[Node]:
        """The operations that read a storage later than ``after``."""
        for index in self._readers.get(storage, ()):
            if index > after:
                yield self.nodes[index]

    def is_constant(self, ref: Ref) -> bool:
        """Whether neither inputs nor parameters went into it."""
        return ref.storage not in self.from_input and ref.storage not in self.from_weight


def _overlap(a: Ref, b: Ref) -> bool:
    if a.dtype.itemsize != b.dtype.itemsize:
        return True
    if a.end <= b.offset or b.end <= a.offset:
        return False
    if _numel(a) * _numel(b) == 0 or max(_numel(a), _numel(b)) > 1 << 20:
        return _numel(a) * _numel(b) > 0
    return bool(torch.isin(a.offsets().flatten(), b.offsets().flatten()).any())


def _numel(ref: Ref) -> int:
    count = 1
    for size in ref.shape:
        count *= size
    return count
