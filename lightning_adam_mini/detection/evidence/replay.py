"""Doing a stretch of the tape again, with made-up values, to see what depends on what.

Which element feeds which does not depend on the values, so none were kept: the outputs of the layers in question, the angles of rotary
embeddings and the weights of norms are random numbers here. The statistics of norms stay fixed, so that a norm over all heads does not
make each head depend on all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from lightning_adam_mini.detection.evidence.graph import Walk
from lightning_adam_mini.detection.evidence.tape import Node, Ref, Tape

_NORMS = ("layer_norm", "group_norm", "rms_norm", "batch_norm", "_norm_legit", "_legit_no_training", "_with_update")
_STATISTICS = frozenset({"rsqrt", "sqrt", "linalg_vector_norm", "norm", "var", "std", "var_mean", "amax", "amin", "reciprocal"})
_MOST = 1 << 27  # elements of a made-up tensor
Memory = dict[int, tuple[Tensor, Ref]]


class ReplayError(Exception):
    """A stretch of the tape cannot be done again; the message says why."""


class Replay:
    """A stretch of a tape as a function of the tensors where it begins, ``starts`` by storage, and its result ``out`` for made-up ones."""

    def __init__(self, tape: Tape, sources: Sequence[Ref], target: Ref, walk: Walk) -> None:
        """Args: the tape, both ends and what lies between them."""
        self.device: torch.device = torch.device("cpu") if tape.device.type == "meta" else tape.device
        self._tape, self._target = tape, target
        self._sources = {ref.storage: ref for ref in sources}
        self._made_up: dict[object, Tensor] = {}
        self._fixed: dict[int, Any] = {}
        self._nodes: list[Node] = []
        depends = set(self._sources)
        for node in walk.inside:
            if any(ref.storage in depends for ref in node.inputs):
                self._nodes.append(node)
                depends |= {ref.storage for ref in (*node.outputs, *node.written)}
        made_up = ((ref, _random(ref.shape, ref.dtype, self.device)) for ref in sources)
        self.starts: dict[int, Tensor] = {ref.storage: _like(ref, values).requires_grad_() for ref, values in made_up}
        with torch.enable_grad():
            self.out: Tensor = self(self.starts)
        if not self.out.requires_grad:
            raise ReplayError("gradients stop on the way")

    def gradient(self, of: Tensor, source: Ref) -> Tensor:
        """Of a tensor made of ``out``, with random weights if it has several elements; zeros where ``source`` does not go into it."""
        start = self.starts[source.storage]
        try:
            with torch.enable_grad():
                real = torch.view_as_real(of) if of.is_complex() else of
                weights = torch.rand(real.shape, generator=torch.Generator().manual_seed(0)).to(real) + 0.5
                (grad,) = torch.autograd.grad((real * weights).sum(), start, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise ReplayError(f"it cannot be differentiated: {str(error).splitlines()[0][:120]}") from error
        return torch.zeros(start.shape) if grad is None else grad.cpu().abs().float()

    def __call__(self, values: Mapping[int, Tensor]) -> Tensor:
        """The target for these values of the tensors where it begins."""
        memory: Memory = {storage: (_like(ref, values[storage].clone()), ref) for storage, ref in self._sources.items()}
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.default_generator.manual_seed(0)  # dropout drops the same each time
            if self.device.type == "cuda":
                torch.cuda.default_generators[self.device.index].manual_seed(0)
            for node in self._nodes:
                self._do(node, memory)
        if self._target.storage not in memory:
            raise ReplayError("the way to it cannot be followed")
        return _view(*memory[self._target.storage], self._target)

    def _do(self, node: Node, memory: Memory) -> None:
        for ref in node.written:
            if ref.storage not in memory:
                size = self._tape.sizes[ref.storage] // ref.dtype.itemsize
                whole = Ref(ref.storage, 0, (size,), (1,), ref.dtype)
                memory[ref.storage] = (self._invent(ref.storage, whole, None).clone(), whole)
        mask = _mask(node, memory)
        args, kwargs = tree_map(lambda x: self._value(node, x, memory, mask) if isinstance(x, Ref) else x, (node.args, node.kwargs))
        if "device" in kwargs:
            kwargs["device"] = self.device
        if node.op.endswith(_NORMS) and node.op not in _STATISTICS and node.outputs and node.outputs[0].shape == tuple(args[0].shape):
            out: Any = args[0].clone()
        elif node.index in self._fixed:
            out = self._fixed[node.index]
        else:
            try:
                out = node.function(*args, **kwargs)
            except Exception as error:
                raise ReplayError(f"{node.op} cannot be done again: {str(error).splitlines()[0][:120]}") from error
            if node.op in _STATISTICS:
                out = self._fixed[node.index] = tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, out)
        new = list(node.outputs)
        for tensor in tree_flatten(out)[0]:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else None
            ref = next((r for r in new if r.shape == shape and r.dtype == tensor.dtype), None)
            if ref is not None:
                new.remove(ref)
                memory[ref.storage] = (_like(ref, tensor), ref)

    def _value(self, node: Node, ref: Ref, memory: Memory, mask: bool | None) -> Tensor:
        if ref.storage in memory:
            return _view(*memory[ref.storage], ref)
        if ref in node.held:
            return node.held[ref]
        if not ref.is_differentiable and ref.dtype is not torch.bool:
            raise ReplayError(f"{node.op} needs the values of an integer tensor, which are not at hand")
        return self._invent((node.index, ref), ref, mask)

    def _invent(self, key: object, ref: Ref, mask: bool | None) -> Tensor:
        if key not in self._made_up:
            if ref.dtype is torch.bool and mask is not None:
                self._made_up[key] = torch.full(ref.shape, mask, device=self.device)
            else:
                self._made_up[key] = _random(ref.shape, ref.dtype, self.device)
        return self._made_up[key]


def _mask(node: Node, memory: Memory) -> bool | None:
    """What a made-up mask must be to leave through what the stretch is about; None for a random one."""
    if node.op != "where":
        return "mask" not in node.op
    one, other = (ref is not None and ref.storage in memory for ref in (node.first("self"), node.first("other")))
    return None if one and other else one


def plainly(nodes: Sequence[Node], *ends: Ref) -> tuple[object, ...]:
    """What a stretch of the tape computes between these tensors, wherever on the tape it stands."""
    numbers: dict[int, int] = {}

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, Ref):
            return (numbers.setdefault(leaf.storage, len(numbers)), leaf.offset, leaf.shape, leaf.stride, leaf.dtype)
        return str(leaf)

    def flat(value: Any) -> tuple[Any, ...]:
        leaves, form = tree_flatten(value)
        return (*map(plain, leaves), str(form))

    steps = [
        (node.name, flat(node.args), flat(node.kwargs), flat(node.outputs), *(hash(t.cpu().numpy().tobytes()) for t in node.held.values()))
        for node in nodes
    ]
    return (*map(plain, ends), *steps)


def _random(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers near one, so that no root or logarithm of them fails, no rectifier stops them, and what they weigh is of one size."""
    if prod(shape) > _MOST:
        raise ReplayError(f"a tensor of {prod(shape)} elements is too large; give a smaller example input")
    if dtype is torch.bool:
        return torch.rand(shape, device=device) < 0.5
    real, imaginary = (torch.rand(shape, device=device) * 0.4 + 0.8 for _ in range(2))
    return (torch.complex(real, imaginary) if dtype.is_complex else real).to(dtype)


def _like(ref: Ref, tensor: Tensor) -> Tensor:
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
        flat = torch.view_as_real(base.as_strided((held.end - held.offset,), (1,), offset)).flatten()
        return flat.as_strided(ref.shape, ref.stride, ref.offset - 2 * held.offset)
    raise ReplayError(f"a {held.dtype} tensor is read as {ref.dtype}")
