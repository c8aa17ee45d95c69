"""Writing the tape: every operation of a forward, below autograd, whatever called it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from lightning_adam_mini.detection.evidence.tape import Node, Ref, Tape

_HELD = 1 << 22  # the most elements of an integer tensor to keep
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "masked_select", "masked_scatter")


class Recorder(TorchDispatchMode):
    """Records operations on a tape while it is entered, and puts back what they write into protected tensors.

    Sees inside custom autograd functions, checkpoints and C++, for it stands below autograd. Keeps no storage alive.
    """

    supports_higher_order_operators = True

    def __init__(self, module: nn.Module, names: Mapping[nn.Module, str], weights: Mapping[str, Tensor], inputs: Iterable[Tensor]) -> None:
        """Args: the module, its modules' names, its parameters by name, and the tensors that the forward is given."""
        super().__init__()
        self.tape = Tape()
        self.path: list[str] = [""]
        self._names = names
        self._numbers: dict[int, tuple[int, StorageWeakRef]] = {}
        self._saved: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}
        self._made: set[int] = set()
        for name, weight in weights.items():
            ref = self._ref(weight)
            if ref is not None:
                self.tape.add_weight(name, ref)
                self.tape.device = weight.device
        for tensor in inputs:
            ref = self._ref(tensor)
            if ref is not None:
                self.tape.from_input.add(ref.storage)
        for holder in module.modules():
            for tensor in tree_flatten([vars(holder), holder._buffers])[0]:
                if isinstance(tensor, Tensor):
                    self._ref(tensor)
        self._protected = {number for number, _ in self._numbers.values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation and write it down."""
        kwargs = kwargs or {}
        flat = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        refs = {id(tensor): self._ref(tensor) for tensor in flat}
        name, is_view, written_args, kept_args = _describe(func)
        written = [t for t in _named(func, args, kwargs, written_args) if isinstance(t, Tensor)]
        for tensor in (*written, *_named(func, args, kwargs, kept_args)):
            if isinstance(tensor, Tensor):
                self._save(tensor)
        held: dict[Ref, Tensor] = {}
        if not is_view:
            for tensor in flat:
                ref = refs[id(tensor)]
                if ref is not None and _is_index(tensor, name) and not tensor.is_meta and tensor.numel() <= _HELD:
                    held[ref] = tensor.clone()
        known = {ref.storage for ref in refs.values() if ref is not None}
        out = func(*args, **kwargs)
        if is_view:
            return out
        outputs = [self._ref(t) for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
        fresh = tuple(ref for ref in outputs if ref is not None and ref.storage not in known)
        if not fresh and not written:
            return out
        new_args, new_kwargs = tree_map(lambda leaf: refs.get(id(leaf)) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        node = Node(
            index=len(self.tape.nodes),
            name=name,
            function=func,
            args=tuple(new_args),
            kwargs=new_kwargs,
            inputs=tuple(ref for ref in refs.values() if ref is not None),
            written=tuple(ref for ref in (refs[id(t)] for t in written) if ref is not None),
            outputs=fresh,
            held=held,
            module=self.path[-1],
        )
        self._note_unknown(node)
        self.tape.add(node, factory=_is_factory(node.op))
        self._made |= {ref.storage for ref in fresh}
        return out

    def enter_module(self, module: nn.Module, args: Any) -> None:
        """A forward pre-hook."""
        self.path.append(self._names.get(module, self.path[-1]))

    def leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        """A forward hook."""
        if len(self.path) > 1:
            self.path.pop()

    def put_back(self) -> None:
        """Undo all writes into protected tensors."""
        for storage, before in self._saved.values():
            storage.copy_(before)
        self._saved.clear()

    def _note_unknown(self, node: Node) -> None:
        """Note activations that no recorded operation made: of the shape of another one, or factors of a product."""
        known = self._made | self._protected | self.tape.from_input
        shapes = {ref.shape for ref in node.inputs if ref.storage in self.tape.from_input}
        for ref in node.inputs:
            is_read = ref.shape in shapes or node.op in ("mm", "addmm", "bmm", "baddbmm", "convolution")
            if is_read and ref.storage not in known and ref.is_differentiable and len(ref.shape) >= 2:
                self.tape.unknown.setdefault(ref.storage, node.module)

    def _ref(self, tensor: Tensor) -> Ref | None:
        """The tensor as a Ref; None if it has no storage of the usual kind (sparse, nested, quantized)."""
        try:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._numbers:
                # The weak reference keeps the address from being used again, not the memory.
                self._numbers[key] = (len(self._numbers), StorageWeakRef(storage))
                self.tape.sizes[self._numbers[key][0]] = storage.nbytes()
            return Ref(self._numbers[key][0], int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
        except (RuntimeError, NotImplementedError):
            return None

    def _save(self, tensor: Tensor) -> None:
        ref = self._ref(tensor)
        if ref is not None and ref.storage in self._protected and ref.storage not in self._saved and not tensor.is_meta:
            storage = tensor.untyped_storage()
            self._saved[ref.storage] = (storage, storage.clone())


def _is_index(tensor: Tensor, name: str) -> bool:
    if tensor.dtype is torch.bool:
        return name.rsplit("::", 1)[-1] in _INDEXED
    return not (tensor.is_floating_point() or tensor.is_complex())


def _is_factory(op: str) -> bool:
    return op.endswith("_like") or op.startswith(("new_", "empty", "zero_"))


@lru_cache(maxsize=4096)
def _describe(func: Any) -> tuple[str, bool, tuple[str, ...], tuple[str, ...]]:
    """Name, whether it only makes views, the arguments that it writes into, and those that it writes into without saying so."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        name = func.name() if callable(getattr(func, "name", None)) else str(func)
        return f"higher_order::{name}", False, (), ()
    written = tuple(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    is_view = not written and any(r.alias_info is not None for r in schema.returns)
    running = tuple(a.name for a in schema.arguments if "batch_norm" in schema.name and a.name in ("running_mean", "running_var"))
    return schema.name, is_view, written, running


def _named(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], names: tuple[str, ...]) -> Iterator[Any]:
    if names:
        for i, argument in enumerate(func._schema.arguments):
            if argument.name in names:
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                yield from value if isinstance(value, (list, tuple)) else (value,)
