"""What has to hold of a parameter, its gradient and its state before a step writes to any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout, second_moment_dtype
from lightning_adam_mini.optim.quantized import SCALE, MomentumDtype, momentum_dtype_for, num_scales
from lightning_adam_mini.optim.segments import is_held
from lightning_adam_mini.optim.stepper import Member


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
    layout: BlockLayout
    dtype: torch.dtype
    device: torch.device
    first: Tensor
    second: Tensor
    step: Tensor
    kept: tuple[int, ...]


class StepChecks:
    """Refuses to step what does not fit what the optimizer knows: users resize, cast and replace tensors between steps.

    Args:
        momentum_dtype: What the optimizer was asked to keep first moments in.
        kept_shape: Shape of what is kept of a parameter's second moment if it is sharded; None if it is whole.
        name_of: Gives the name of a parameter.
        changed: Called with a parameter that is in order, but not as it was.
    """

    def __init__(
        self,
        momentum_dtype: MomentumDtype | None,
        kept_shape: Callable[[Tensor], tuple[int, ...] | None],
        name_of: Callable[[Tensor], str],
        changed: Callable[[Tensor], None],
    ) -> None:
        self._momentum_dtype: MomentumDtype | None = momentum_dtype
        self._kept_shape = kept_shape
        self._name_of = name_of
        self._changed = changed
        self._seen: dict[int, _Seen] = {}

    def check(self, members: Sequence[Member]) -> None:
        """Check parameters that are about to be stepped.

        A count of steps of another dtype becomes a float32 one, which is how all steps count.

        Args:
            members: Whole parameters, with their gradients and states; they may have no state yet.

        Raises:
            RuntimeError: If a shape, dtype or device does not fit; names the parameter and the remedy. Nothing has changed then.
        """
        for member in members:
            p, _, grad, _, layout, state = member
            seen = self._seen.get(id(p))
            shape = p.shape
            # What can change without a new object is checked each time. This is most of what a step of small tensors does in Python.
            if (
                seen is None
                or seen.p is not p
                or seen.layout is not layout
                or grad.shape != shape
                or grad.layout is not torch.strided
                or p.dtype is not seen.dtype
                or p.device != seen.device
                or state.get("exp_avg") is not seen.first
                or state.get("exp_avg_sq") is not seen.second
                or state.get("step") is not seen.step
                or seen.first.shape != shape
                or seen.second.shape != seen.kept
                or (p.is_cpu and not all(map(is_held, (p, grad, seen.first, seen.second))))
            ):
                self._check_wholly(member)

    def _check_wholly(self, member: Member) -> None:
        p, _, grad, _, layout, state = member
        check_gradient(p, grad, self._name_of)
        name, shape, device, kept = self._name_of, p.shape, p.device, self._kept_shape(p)
        if (shape != layout.shape and kept is None) or grad.shape != shape:
            raise RuntimeError(_other_shape(p, grad, layout, name(p)))
        self._changed(p)
        if not state:
            return
        if not state.keys() >= {"step", "exp_avg", "exp_avg_sq"}:
            raise RuntimeError(_damaged(p, name(p), f"has only {', '.join(map(repr, state))}"))
        kept = layout.block_shape if kept is None else kept
        first, second, kept_in = state["exp_avg"], state["exp_avg_sq"], momentum_dtype_for(p, self._momentum_dtype)
        if first.shape != shape or second.shape != kept:
            raise RuntimeError(
                _damaged(
                    p,
                    name(p),
                    f"has a first moment of shape {tuple(first.shape)} and a second moment of shape {tuple(second.shape)}, but"
                    f" {tuple(shape)} and {tuple(kept)} belong to it",
                )
            )
        wanted = torch.int8 if kept_in == "8bit" else kept_in
        if first.dtype != wanted or second.dtype != second_moment_dtype(p.dtype) or first.device != device or second.device != device:
            raise RuntimeError(_cast(p, first, second, name(p)))
        if kept_in == "8bit" and (SCALE not in state or state[SCALE].shape != (num_scales(p.numel()),)):
            raise RuntimeError(_damaged(p, name(p), "has no scales of its 8-bit first moment that fit"))
        step = state["step"]
        if not isinstance(step, Tensor) or step.numel() != 1:
            raise RuntimeError(_damaged(p, name(p), f"counts its steps in {step!r}, which is no tensor of one element"))
        tensors = {"parameter": p, "gradient": grad, "first moment": first, "second moment": second, "step count": step}
        for what, tensor in tensors.items():
            if type(tensor) in (Tensor, torch.nn.Parameter) and not is_held(tensor):
                raise RuntimeError(_damaged(p, name(p), f"or gradient has lost memory: the storage of its {what} was freed or cut"))
        if step.dtype != torch.float32:
            step = state["step"] = step.to(torch.float32)
        if SCALE not in state:
            self._seen[id(p)] = _Seen(p, layout, p.dtype, device, first, second, step, tuple(kept))

    def forget(self) -> None:
        """Keep nothing of any parameter, so that those that are gone are free."""
        self._seen.clear()


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


def _cast(p: Tensor, first: Tensor, second: Tensor, name: str) -> str:
    return (
        f"AdamMini cannot step parameter {name!r} of shape {tuple(p.shape)} because it is {p.dtype} on {p.device}, but its first moment is"
        f" {first.dtype} on {first.device} and its second {second.dtype} on {second.device}: it or they were cast or moved between two"
        " steps. Call optimizer.load_state_dict(optimizer.state_dict()), which casts the state to what the parameter needs."
    )


def _damaged(p: Tensor, name: str, what: str) -> str:
    return (
        f"AdamMini cannot step parameter {name!r} of shape {tuple(p.shape)} because its state {what}: it was changed between two steps."
        " Rows are pruned and added by optimizer.replace_parameter(old, new, rows=...); for another change, make a new optimizer."
    )
