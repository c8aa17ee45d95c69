"""A tape: the operations of one forward, which storages they read and wrote, and nothing of the values.

Every tensor is a :class:`Ref`: a view (offset, sizes, strides) into a storage. A view of a tensor is just another Ref into the same
storage, so that views need no operation of their own on the tape and in-place writes into a part of a tensor are seen for what they are.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

_log = logging.getLogger(__name__)
_HELD = 1 << 22  # the most elements of an integer tensor to keep
_INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "masked_select", "masked_scatter"})


class TooLongError(BaseException):
    """The forward takes longer than it may. No forward that catches its own errors shall catch it."""


@dataclass(frozen=True)
class Ref:
    """A tensor as it was: a view into the storage of that number."""

    storage: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @cached_property
    def is_differentiable(self) -> bool:
        """Whether it holds floating or complex numbers."""
        return self.dtype.is_floating_point or self.dtype.is_complex

    @property
    def end(self) -> int:
        """One past the last element."""
        return self.offset + 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    def first(self, dim: int) -> Ref:
        """The first slice along ``dim``."""
        dim %= len(self.shape)
        shape, stride = (values[:dim] + values[dim + 1 :] for values in (self.shape, self.stride))
        return Ref(self.storage, self.offset, shape, stride, self.dtype)

    def coordinates(self, offsets: Tensor) -> list[Tensor]:
        """The index along each dimension of the elements at ``offsets``; the tensor must be dense."""
        rest = offsets - self.offset
        found = [torch.zeros_like(rest) for _ in self.shape]
        for dim in sorted(range(len(self.shape)), key=lambda d: -self.stride[d]):
            if self.shape[dim] > 1 and self.stride[dim] > 0:
                found[dim] = rest // self.stride[dim]
                rest = rest % self.stride[dim]
        return found


@dataclass(frozen=True, eq=False)
class Node:
    """One operation: what to call to do it again, with Refs where there were tensors, and the values of integer tensors among them."""

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

    @cached_property
    def op(self) -> str:
        """The name without the namespace."""
        return self.name.rsplit("::", 1)[-1]

    @cached_property
    def named(self) -> dict[str, Any]:
        """The arguments by name."""
        return _by_name(self.function, self.args, self.kwargs)

    def first(self, *names: str) -> Ref | None:
        """The first of these arguments that is a tensor."""
        return next((self.named[name] for name in names if isinstance(self.named.get(name), Ref)), None)


class Tape(TorchDispatchMode):
    """Records operations while it is entered, and puts back what they write into protected tensors.

    Sees inside custom autograd functions, checkpoints and C++, for it stands below autograd. Keeps no storage alive.

    Attributes:
        nodes: The operations in order, without those that only make views.
        weights: The parameters: name, and the view that each is.
        by_storage: Numbers of the parameters in a storage.
        given: Each tensor that the forward was given; None if it has no storage of the usual kind.
        inputs: Their storages.
        sizes: Bytes of each storage.
        device: Where the model ran.
        unknown: Storages that no recorded operation made, and the module that read them.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        module: nn.Module,
        names: Mapping[nn.Module, str],
        weights: Mapping[str, Tensor],
        inputs: Iterable[Tensor],
        deadline: float | None = None,
        alone: bool = False,
    ) -> None:
        """Args: the module, its modules' names, its parameters, the forward's tensors, when to stop, whether no other process runs."""
        super().__init__()
        self._alone = alone
        self._deadline = deadline
        self.nodes: list[Node] = []
        self.weights: list[tuple[str, Ref]] = []
        self.by_storage: dict[int, list[int]] = {}
        self.sizes: dict[int, int] = {}
        self.device: torch.device = torch.device("cpu")
        self.unknown: dict[int, str] = {}
        self._writers: dict[int, list[Node]] = {}
        self._path = [""]
        self._names = names
        self._numbers: dict[int, tuple[int, StorageWeakRef]] = {}
        self._saved: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}
        for name, weight in weights.items():
            ref = self.ref(weight)
            if ref is not None:
                self.by_storage.setdefault(ref.storage, []).append(len(self.weights))
                self.weights.append((name, ref))
                self.device = weight.device
        self.given: list[Ref | None] = [self.ref(tensor) for tensor in inputs]
        self.inputs: set[int] = {ref.storage for ref in self.given if ref is not None}
        attributes = (value for inner in module.modules() for value in vars(inner).values())
        for tensor in _tensors([v for v in attributes if isinstance(v, Tensor) or (isinstance(v, (dict, list, tuple, deque)) and v)]):
            self.ref(tensor)
        self._protected = {number for number, _ in self._numbers.values()}

    def writers(self, ref: Ref, before: int) -> list[Node]:
        """The operations earlier than ``before`` that wrote into the storage of ``ref``."""
        return [node for node in self._writers.get(ref.storage, ()) if node.index < before]

    def is_made(self, ref: Ref) -> bool:
        """Whether a recorded operation wrote it."""
        return ref.storage in self._writers

    def is_late(self) -> bool:
        """Whether the time is over."""
        return self._deadline is not None and time.monotonic() > self._deadline

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation and write it down."""
        if self.is_late():
            raise TooLongError
        kwargs = kwargs or {}
        name, is_view, writes, keeps = _describe(func)
        if self._alone and name.startswith(("c10d::", "_c10d_functional::")):
            raise RuntimeError("it calls other processes, which do not answer")
        if is_view:
            return func(*args, **kwargs)
        named = _by_name(func, args, kwargs) if writes or keeps else {}
        written = _tensors([named.get(n) for n in writes])
        for tensor in (*written, *_tensors([named.get(n) for n in keeps])):
            self._save(tensor)
        tensors = _tensors((args, kwargs))
        refs = {id(tensor): self.ref(tensor) for tensor in tensors}
        held = {ref: t.clone() for t in tensors if _is_index(t, name) and (ref := refs[id(t)]) is not None}
        out = func(*args, **kwargs)
        try:
            inputs, changed = (tuple(r for t in some if (r := refs[id(t)]) is not None) for some in (tensors, written))
            known = {ref.storage for ref in inputs}
            made = tuple(ref for ref in map(self.ref, _tensors(out)) if ref is not None and ref.storage not in known)
            if made or changed:  # not one more view
                plain = tree_map(lambda leaf: refs.get(id(leaf)) if isinstance(leaf, Tensor) else leaf, (tuple(args), kwargs))
                self._add(Node(len(self.nodes), name, func, plain[0], plain[1], inputs, changed, made, held, self._path[-1]))
        except Exception:
            _log.debug("%s was not recorded", name, exc_info=True)
            self.unknown.update({ref.storage: self._path[-1] for ref in map(self.ref, (*written, *_tensors(out))) if ref is not None})
        return out

    def _add(self, node: Node) -> None:
        # Activations that no recorded operation made: of the shape of another one, or factors of a product.
        shapes = {ref.shape for ref in node.inputs if ref.storage in self.inputs}
        for ref in node.inputs:
            is_read = ref.shape in shapes or node.op in ("mm", "addmm", "bmm", "baddbmm", "convolution")
            is_known = self.is_made(ref) or ref.storage in self._protected
            if is_read and not is_known and ref.is_differentiable and len(ref.shape) >= 2:
                self.unknown.setdefault(ref.storage, node.module)
        self.nodes.append(node)
        for ref in (*node.outputs, *node.written):
            self._writers.setdefault(ref.storage, []).append(node)

    def enter_module(self, module: nn.Module, args: Any) -> None:
        """A forward pre-hook."""
        self._path.append(self._names.get(module, self._path[-1]))

    def leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        """A forward hook."""
        if len(self._path) > 1:
            self._path.pop()

    def put_back(self) -> None:
        """Undo all writes into tensors that were there before."""
        for storage, before in self._saved.values():
            if storage.nbytes() != before.nbytes():
                storage.resize_(before.nbytes())
            storage.copy_(before)
        self._saved.clear()

    def ref(self, tensor: Tensor) -> Ref | None:
        """The tensor as a Ref; None if it has no storage of the usual kind (sparse, nested, quantized)."""
        try:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._numbers:
                # The weak reference keeps the address from being used again, not the memory.
                self._numbers[key] = (len(self._numbers), StorageWeakRef(storage))
                self.sizes[self._numbers[key][0]] = storage.nbytes()
            return Ref(self._numbers[key][0], int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
        except (RuntimeError, NotImplementedError):
            return None

    def _save(self, tensor: Tensor) -> None:
        ref = self.ref(tensor)
        # What no operation of this forward made was there before it, wherever it is held: in an attribute, a closure, another optimizer.
        if ref is not None and not self.is_made(ref) and ref.storage not in self._saved and not tensor.is_meta:
            storage = tensor.untyped_storage()
            self._saved[ref.storage] = (storage, storage.clone())


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(values)[0] if isinstance(leaf, Tensor)]


def _is_index(tensor: Tensor, name: str) -> bool:
    if tensor.is_meta or tensor.numel() > _HELD or tensor.is_floating_point() or tensor.is_complex():
        return False
    return tensor.dtype is not torch.bool or name.rsplit("::", 1)[-1] in _INDEXED


def _by_name(func: Any, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    schema = getattr(func, "_schema", None)
    return {**dict(zip((a.name for a in schema.arguments), args, strict=False)), **kwargs} if schema is not None else dict(kwargs)


@lru_cache(maxsize=4096)
def _describe(func: Any) -> tuple[str, bool, tuple[str, ...], tuple[str, ...]]:
    """Name, whether it only makes views, the arguments that it writes into, and those that it writes into without saying so."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        name = func.name() if callable(getattr(func, "name", None)) else str(func)
        return f"higher_order::{name}", False, (), ()
    written = tuple(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    is_view = not written and any(r.alias_info is not None for r in schema.returns)
    running = ("running_mean", "running_var") if "batch_norm" in schema.name else ()
    return schema.name, is_view, written, running
