"""Doing a stretch of the tape again, with made-up values, to see what depends on what.

Which element feeds which does not depend on the values, so none were kept: the outputs of the layer in question, the angles of rotary
embeddings and the weights of norms are random numbers here. The statistics of norms stay fixed, so that a norm over all heads does not
make each head depend on all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from lightning_adam_mini.detection.evidence.graph import Graph, Kind
from lightning_adam_mini.detection.evidence.tape import Node, Ref, Tape

_NORMS = frozenset(
    {"native_layer_norm", "native_group_norm", "_fused_rms_norm", "rms_norm", "native_batch_norm", "cudnn_batch_norm"}
    | {"_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_batch_norm_with_update", "batch_norm", "miopen_batch_norm"}
)
_STATISTICS = frozenset({"rsqrt", "sqrt", "linalg_vector_norm", "norm", "var", "std", "var_mean", "amax", "amin", "reciprocal"})
_MOST = 1 << 27  # elements of a made-up storage


class ReplayError(Exception):
    """A stretch of the tape cannot be done again; the message says why."""


def stretch(graph: Graph, source: Ref, made_at: int, target: Ref, before: int, through: Iterable[Node] = ()) -> list[Node]:
    """The operations by which ``target``, as it is at ``before``, depends on ``source``, as operation ``made_at`` left it.

    Args:
        graph: The graph.
        source: Where the stretch begins.
        made_at: The operation that made ``source``.
        target: Where it ends.
        before: The operation that reads ``target``.
        through: Operations to look through although they are not :attr:`Kind.PASS`.
    """
    allowed = {node.index for node in through}
    found: dict[int, Node] = {}
    todo = [(target, before)]
    while todo:
        at, time = todo.pop()
        for node in graph.tape.writers(at, time):
            if node.index > made_at and node.index not in found and (node.index in allowed or graph.kind(node) is Kind.PASS):
                found[node.index] = node
                todo += [(ref, node.index) for ref in node.inputs if ref.is_differentiable and not graph.tape.is_constant(ref)]
    depends = {source.storage}
    nodes: list[Node] = []
    for index in sorted(found):
        node = found[index]
        if any(ref.storage in depends for ref in node.inputs):
            nodes.append(node)
            depends |= {ref.storage for ref in (*node.outputs, *node.written)}
    return nodes


class Replay:
    """A stretch of a tape as a function of the flat storage of its source."""

    def __init__(self, tape: Tape, source: Ref, target: Ref, nodes: Sequence[Node]) -> None:
        """Args: the tape, both ends and the operations between them."""
        self.device = torch.device("cpu") if tape.device.type == "meta" else tape.device
        self.size = tape.sizes[source.storage] // source.dtype.itemsize
        self._tape, self._source, self._target, self._nodes = tape, source, target, nodes
        self._made_up: dict[tuple[int, Ref] | int, Tensor] = {}
        self._fixed: dict[int, Any] = {}
        if self.size > _MOST:
            raise ReplayError(f"a layer's output of {self.size} elements is too large; give a smaller example input")

    def values(self) -> Tensor:
        """Made-up values of the source's storage."""
        return _random((self.size,), self._source.dtype, self.device)

    def __call__(self, flat: Tensor) -> Tensor:
        """The target for these values of the source's storage."""
        memory: dict[int, tuple[Tensor, Ref]] = {}
        whole = Ref(self._source.storage, 0, (self.size,), (1,), self._source.dtype)
        memory[self._source.storage] = (flat.clone(), whole)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)  # dropout drops the same each time
            for node in self._nodes:
                self._do(node, memory)
        if self._target.storage not in memory:
            raise ReplayError("the way to it cannot be followed")
        return _view(*memory[self._target.storage], self._target)

    def _do(self, node: Node, memory: dict[int, tuple[Tensor, Ref]]) -> None:
        for ref in node.written:
            if ref.storage not in memory:
                memory[ref.storage] = self._blank(ref)
        args, kwargs = tree_map(lambda leaf: self._value(node, leaf, memory) if isinstance(leaf, Ref) else leaf, (node.args, node.kwargs))
        if "device" in kwargs:
            kwargs["device"] = self.device
        if node.op in _NORMS and isinstance(node.args[0], Ref) and node.outputs:
            out: Any = args[0].clone() if node.outputs[0].shape == tuple(args[0].shape) else _fail(node)
        elif node.op in _STATISTICS:
            if node.index not in self._fixed:
                self._fixed[node.index] = tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, self._call(node, args, kwargs))
            out = self._fixed[node.index]
        else:
            out = self._call(node, args, kwargs)
        made = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
        new = list(node.outputs)
        for tensor in made:
            ref = next((r for r in new if r.shape == tuple(tensor.shape) and r.dtype == tensor.dtype), None)
            if ref is not None:
                new.remove(ref)
                memory[ref.storage] = (_dense_as(tensor, ref), ref)

    def _call(self, node: Node, args: Any, kwargs: Any) -> Any:
        try:
            return node.function(*args, **kwargs)
        except Exception as error:
            raise ReplayError(f"{node.op} cannot be done again: {str(error).splitlines()[0][:120]}") from error

    def _value(self, node: Node, ref: Ref, memory: dict[int, tuple[Tensor, Ref]]) -> Tensor:
        if ref.storage in memory:
            return _view(*memory[ref.storage], ref)
        if ref in node.held:
            return node.held[ref]
        if not ref.is_differentiable and ref.dtype is not torch.bool:
            raise ReplayError(f"{node.op} needs the values of an integer tensor, which are not at hand")
        key = (node.index, ref)
        if key not in self._made_up:
            self._made_up[key] = _random(ref.shape, ref.dtype, self.device)
        return self._made_up[key]

    def _blank(self, ref: Ref) -> tuple[Tensor, Ref]:
        size = self._tape.sizes[ref.storage] // ref.dtype.itemsize
        if size > _MOST:
            raise ReplayError(f"a buffer of {size} elements is too large; give a smaller example input")
        if ref.storage not in self._made_up:
            self._made_up[ref.storage] = _random((size,), ref.dtype, self.device)
        return self._made_up[ref.storage].clone(), Ref(ref.storage, 0, (size,), (1,), ref.dtype)


def _fail(node: Node) -> Tensor:
    raise ReplayError(f"{node.op} changes the shape")


def _random(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers near one, so that no root or logarithm of them fails, no rectifier stops them, and what they weigh is of one size."""
    if dtype is torch.bool:
        return torch.rand(shape, device=device) < 0.5
    if dtype.is_complex:
        return torch.complex(_near_one(shape, device), _near_one(shape, device)).to(dtype)
    return _near_one(shape, device).to(dtype)


def _near_one(shape: Sequence[int], device: torch.device) -> Tensor:
    return torch.rand(shape, device=device) * 0.4 + 0.8


def _dense_as(tensor: Tensor, ref: Ref) -> Tensor:
    if tuple(tensor.stride()) == ref.stride or tensor.numel() == 0:
        return tensor
    return torch.empty_strided(ref.shape, ref.stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _view(base: Tensor, held: Ref, ref: Ref) -> Tensor:
    """``ref``'s view into the storage of which ``base`` is the tensor ``held``."""
    if ref == held:
        return base
    offset = base.storage_offset()
    if ref.dtype == held.dtype:
        return base.as_strided(ref.shape, ref.stride, ref.offset - held.offset + offset)
    if ref.dtype.is_complex and not held.dtype.is_complex:
        shape, stride = (*ref.shape, 2), (*(2 * s for s in ref.stride), 1)
        return torch.view_as_complex(base.as_strided(shape, stride, 2 * ref.offset - held.offset + offset))
    if held.dtype.is_complex and not ref.dtype.is_complex:
        flat = torch.view_as_real(base.as_strided((_length(held),), (1,), offset)).flatten()
        return flat.as_strided(ref.shape, ref.stride, ref.offset - 2 * held.offset)
    raise ReplayError(f"a {held.dtype} tensor is read as {ref.dtype}")


def _length(ref: Ref) -> int:
    return ref.end - ref.offset
