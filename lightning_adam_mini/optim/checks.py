"""What has to hold of a parameter, its gradient and its state before a step writes to any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.codecs import Field
from lightning_adam_mini.optim.segments import is_held, overlaps
from lightning_adam_mini.optim.shards.dtensor import local
from lightning_adam_mini.optim.state import SLOTS, STEP, Kind, StateFormat, slots_for
from lightning_adam_mini.optim.work import Member


def check_gradient(p: Tensor, grad: Tensor, name_of: Callable[[Tensor], str]) -> None:
    """Refuse a gradient that has no squares to average.

    Args:
        p: A parameter.
        grad: Its gradient.
        name_of: Gives the name of a parameter.

    Raises:
        RuntimeError: If it is sparse or complex.
    """
    kind = "sparse" if grad.layout != torch.strided else "complex" if grad.is_complex() else None
    if kind:
        remedy = "make its layer with sparse=False" if kind == "sparse" else "keep it as a real tensor (torch.view_as_real)"
        raise RuntimeError(
            f"AdamMini cannot step parameter {name_of(p)!r} of shape {tuple(p.shape)} because its gradient is {kind}:"
            f" {remedy}, or give it to another optimizer."
        )


class _Seen(NamedTuple):
    """What was found in order of a parameter: if the very same tensors come again with the same shapes, they are in order."""

    p: Tensor
    shape: torch.Size
    strides: tuple[int, ...]
    layout: BlockLayout
    dtype: torch.dtype
    device: torch.device
    kept: tuple[tuple[str, Tensor, torch.Size, tuple[int, ...]], ...]


class StepChecks:
    """Refuses to step what does not fit what the optimizer knows: users resize, cast and replace tensors between steps.

    Args:
        format: How the optimizer keeps state.
        name_of: Gives the name of a parameter.
    """

    def __init__(self, format: StateFormat, name_of: Callable[[Tensor], str]) -> None:
        self._format = format
        self._name_of = name_of
        self._seen: dict[int, _Seen] = {}

    def check(self, members: Sequence[Member]) -> list[Tensor]:
        """Check parameters that are about to be stepped.

        A count of steps of another dtype becomes a float32 one, which is how all steps count.

        Args:
            members: Whole parameters, with their gradients and states; they may have no state yet.

        Returns:
            Those that are in order, but not known to be as they were.

        Raises:
            RuntimeError: If a shape, dtype or device does not fit; names the parameter and the remedy. Nothing has changed then.
        """
        changed = []
        for member in members:
            p, grad, state = member.param, member.grad, member.state
            seen = self._seen.get(id(p))
            # What can change without a new object is checked each time. This is most of what a step of small tensors does in Python.
            if (
                seen is None
                or seen.p is not p
                or seen.layout is not member.whole
                or p.shape != seen.shape
                or p.stride() != seen.strides
                or grad.shape != seen.shape
                or grad.layout is not torch.strided
                or p.dtype is not seen.dtype
                or p.device != seen.device
                or any(
                    state.get(name) is not tensor or tensor.shape != shape or tensor.stride() != strides
                    for name, tensor, shape, strides in seen.kept
                )
                or (
                    (p.is_cpu or p.is_cuda) and not (is_held(p) and is_held(grad) and all(is_held(tensor) for _, tensor, _, _ in seen.kept))
                )
            ):
                self._check_wholly(member)
                changed.append(p)
        return changed

    def _check_wholly(self, member: Member) -> None:
        p, grad, layout, state = member.param, member.grad, member.whole, member.state
        check_gradient(p, grad, self._name_of)
        shape = p.shape
        if (shape != layout.shape and not self._format.is_sharded(p)) or grad.shape != shape:
            raise RuntimeError(_other_shape(p, grad, layout, self._name_of(p)))
        if overlaps(local(p)):
            raise RuntimeError(_overlapping(p, self._name_of(p)))
        if not state:
            return
        missing = [slot.name for slot in slots_for(layout) if slot.name not in state]
        if missing:
            raise RuntimeError(_damaged(p, self._name_of(p), f"has no {', '.join(map(repr, missing))}"))
        fields = self._format.fields(p, layout)
        for name, field in fields.items():
            kept = state.get(name)
            if name == STEP.name:
                if not isinstance(kept, Tensor) or kept.numel() != 1 or (kept.is_meta and not p.is_meta):
                    raise RuntimeError(
                        _damaged(p, self._name_of(p), f"counts its steps in {kept!r}, which is no tensor of one element with a value")
                    )
            elif not isinstance(kept, Tensor) or local(kept).shape != field.shape:
                has = f"has no {_what(name)}"
                if isinstance(kept, Tensor):
                    has = f"keeps its {_what(name)} in shape {tuple(local(kept).shape)}"
                raise RuntimeError(_damaged(p, self._name_of(p), f"{has}, but shape {tuple(field.shape)} belongs to it"))
        for name, field in fields.items():
            if name != STEP.name and (state[name].dtype != field.dtype or state[name].device != p.device):
                raise RuntimeError(_cast(p, state[name], field.dtype, _what(name), self._name_of(p)))
        tensors = {"parameter": p, "gradient": grad, **{_what(name): state[name] for name in fields}}
        for what, tensor in tensors.items():
            if type(tensor) in (Tensor, torch.nn.Parameter) and not is_held(tensor):
                raise RuntimeError(
                    _damaged(p, self._name_of(p), f"or gradient has lost memory: the storage of its {what} was freed or cut")
                )
        for name, field in fields.items():
            self._put_right(p, state, name, field)
        kept = tuple((name, state[name], state[name].shape, state[name].stride()) for name in fields)
        self._seen[id(p)] = _Seen(p, shape, p.stride(), layout, p.dtype, p.device, kept)

    @staticmethod
    def _put_right(p: Tensor, state: dict[str, Any], name: str, field: Field) -> None:
        """Follow what may change: the count's dtype and device, and the strides of what is not in the parameter's memory order."""
        kept = state[name]
        if name == STEP.name:
            there = kept.device if kept.device in (p.device, torch.device("cpu")) else torch.device("cpu")
            state[name] = kept.to(there, field.dtype)
        elif (field.shape != p.shape and not kept.is_contiguous()) or overlaps(local(kept)):
            state[name] = kept.contiguous()

    def forget(self) -> None:
        """Keep nothing of any parameter, so that those that are gone are free."""
        self._seen.clear()


def _what(name: str) -> str:
    """What users call a tensor of a state."""
    slot = next(slot for slot in sorted(SLOTS, key=lambda slot: -len(slot.name)) if name.startswith(slot.name))
    return slot.what if name == slot.name or slot.kind is not Kind.ELEMENT else f"scales of the {slot.what}"


def _other_shape(p: Tensor, grad: Tensor, layout: BlockLayout, name: str) -> str:
    shape = tuple(p.shape)
    if tuple(grad.shape) != shape:
        return (
            f"AdamMini cannot step parameter {name!r} of shape {shape} because its gradient has shape {tuple(grad.shape)}. Run backward"
            " again after the parameter was changed."
        )
    return (
        f"AdamMini cannot step parameter {name!r} of shape {shape} because its blocks were made for shape {layout.shape}: it was resized"
        " after the optimizer was made. Make a new nn.Parameter and call optimizer.replace_parameter(old, new, rows=...), which takes its"
        " state along; or make a new optimizer."
    )


def _overlapping(p: Tensor, name: str) -> str:
    return (
        f"AdamMini cannot step parameter {name!r} of shape {tuple(p.shape)} because its elements share memory (strides {p.stride()}), so"
        " that none can be stepped alone. Make it of a tensor of its own: p.data = p.data.clone(memory_format=torch.contiguous_format)."
    )


def _cast(p: Tensor, kept: Tensor, dtype: torch.dtype, what: str, name: str) -> str:
    return (
        f"AdamMini cannot step parameter {name!r} of shape {tuple(p.shape)} because it is {p.dtype} on {p.device}, to which a {what} in"
        f" {dtype} there belongs, but its {what} is {kept.dtype} on {kept.device}: it or they were cast or moved between two"
        " steps. Call optimizer.load_state_dict(optimizer.state_dict()), which casts the state to what the parameter needs."
    )


def _damaged(p: Tensor, name: str, what: str) -> str:
    return (
        f"AdamMini cannot step parameter {name!r} of shape {tuple(p.shape)} because its state {what}: it was changed between two steps."
        " Rows are pruned and added by optimizer.replace_parameter(old, new, rows=...); for another change, make a new optimizer."
    )
