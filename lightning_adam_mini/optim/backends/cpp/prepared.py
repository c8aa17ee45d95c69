"""The step of the tensors of the step before: checked by torch in one call, handed to the compiled kernel as whole columns of addresses.

A step of many small tensors is mostly Python. What the kernel has to know of each tensor hardly ever changes from step to step, so its
table is kept. What was checked one by one is compared with what comes now by the guards of torch.compile, which do so in C++: type, dtype,
device, shape and strides of every parameter, gradient and state. Where anything differs, all are looked at one by one again.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lightning_adam_mini.optim.backends.cpp.build import FIELDS
from lightning_adam_mini.optim.backends.cpp.run import Row, options_of, run_kernel
from lightning_adam_mini.optim.segments import in_memory_of, is_held

TensorGuards: Any = None
with contextlib.suppress(ImportError):  # no public contract of torch: without it each tensor is looked at in Python in each step
    from torch._C._dynamo.guards import TensorGuards


class _Group(NamedTuple):
    """What a group was like.

    Attributes:
        has_grad: Which of its parameters had gradients; None if all.
        modes: The options by which it is decided what steps it.
    """

    has_grad: list[bool] | None
    modes: tuple[Any, ...]


def _modes(group: Mapping[str, Any]) -> tuple[Any, ...]:
    return group["fused"], group["foreach"]


class Prepared:
    """A step that is ready to be taken again.

    Args:
        groups: The optimizer's groups, each of whose parameters with a gradient the kernel has just stepped.
        state: The state of each parameter.
        fields: For each of these parameters, in order, what ``Cpp.plan`` gave.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]], fields: Sequence[Row]) -> None:
        self._groups = []
        members = array("q")
        for g, group in enumerate(groups):
            has_grad = [p.grad is not None for p in group["params"]]
            members.extend([g] * sum(has_grad))
            self._groups.append(_Group(None if all(has_grad) else has_grad, _modes(group)))
        self._tasks = array("q", bytes(8 * FIELDS * len(fields)))
        for column, values in enumerate(zip(*fields, strict=True), start=6):
            self._tasks[column::FIELDS] = array("q", values)
        self._tasks[FIELDS - 1 :: FIELDS] = members
        self._addresses: list[array[int]] = []
        self._guards: Any = None
        columns = self._columns(groups, state)
        if (
            columns is not None
            and TensorGuards is not None
            and all(in_memory_of(p, grad) is grad for p, grad in zip(columns[0], columns[1], strict=True))
        ):
            self._scaled = sum(t is not None for t in columns[5])
            tensors = [t for column in columns for t in column if t is not None]
            self._guards = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)

    def _columns(self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]]) -> list[list[Any]] | None:
        """Parameters, gradients, first and second moments, steps, scales; None if other ones have gradients or one has no state."""
        params: list[Tensor] = []
        grads: list[Any] = []
        for group, was in zip(groups, self._groups, strict=True):
            if _modes(group) != was.modes:
                return None
            here = group["params"]
            there = [p.grad for p in here]
            if was.has_grad is not None:
                if [grad is not None for grad in there] != was.has_grad:
                    return None
                here = [p for p, grad in zip(here, there, strict=True) if grad is not None]
                there = [grad for grad in there if grad is not None]
            params += here
            grads += there
        try:
            states = [state[p] for p in params]
            return [
                params,
                grads,
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                [s["step"] for s in states],
                [s.get("exp_avg_scale") for s in states],
            ]
        except KeyError:
            return None

    def step(self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]]) -> bool:
        """Take the step if all is as it was; else do nothing.

        Args:
            groups: The optimizer's groups, with the parameters that they had.
            state: The state of each parameter.

        Returns:
            Whether it was taken.
        """
        if self._guards is None:
            return False
        columns = self._columns(groups, state)
        if columns is None:
            return False
        scales = [t for t in columns[5] if t is not None]
        if len(scales) != self._scaled or not self._guards.check(*columns[0], *columns[1], *columns[2], *columns[3], *columns[4], *scales):
            return False
        addresses = [array("q", map(Tensor.data_ptr, column)) for column in columns[:5]]
        addresses.append(
            array("q", [0 if t is None else t.data_ptr() for t in columns[5]]) if scales else array("q", bytes(8 * len(columns[5])))
        )
        # A storage can be freed or cut under a tensor that keeps its shape; it is elsewhere then.
        before = self._addresses or [array("q")] * 6
        for column, now, then in zip(columns, addresses, before, strict=True):
            if now != then and not all(t is None or is_held(t) for t in column):
                return False
        self._addresses = addresses
        for column, now in enumerate(addresses):
            self._tasks[column::FIELDS] = now
        options = array("d")
        for group in groups:
            options.extend(options_of(group))
        run_kernel(self._tasks, options, columns[0])
        return True
