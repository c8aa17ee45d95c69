"""The step of the tensors of the step before: checked by torch in one call, handed to the compiled kernel as whole columns of addresses.

A step of many small tensors is mostly Python. What the kernel has to know of each tensor hardly ever changes from step to step, so its
table is kept. What was checked one by one is compared with what comes now by the guards of torch.compile, which do so in C++: type, dtype,
device, shape and strides of every parameter, gradient and state. Where anything differs, all are looked at one by one again.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor

from lightning_adam_mini.optim.backends.cpp.build import FIELDS
from lightning_adam_mini.optim.backends.cpp.run import STATE, Row, options_of, run_kernel
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
        for column, values in enumerate(zip(*fields, strict=True), start=2 + len(STATE)):
            self._tasks[column::FIELDS] = array("q", values)
        self._tasks[FIELDS - 1 :: FIELDS] = members
        self._addresses: list[array[int]] = []
        self._guards: Any = None
        stepped = [p for group in groups for p in group["params"] if p.grad is not None]
        self._members = [[i for i, p in enumerate(stepped) if name in state[p]] for name in STATE]  # not all have the last two
        columns = self._columns(groups, state)
        if (
            columns is not None
            and TensorGuards is not None
            and all(in_memory_of(p, grad) is grad for p, grad in zip(columns[0], columns[1], strict=True))
        ):
            self._guards = TensorGuards(*chain(*columns), dynamic_dims_sizes=None, dynamic_dims_strides=None)

    def _columns(self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]]) -> list[list[Any]] | None:
        """Parameters, gradients, and what the kernel takes of their state; None if other ones have gradients or one has no state."""
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
            kept = ([s[name] for s in states] for name in STATE[:3])
            more = ([states[i][name] for i in self._members[k]] for k, name in enumerate(STATE[3:], start=3))
            return [params, grads, *kept, *more]
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
        if not self._guards.check(*chain(*columns)):
            return False
        addresses = [array("q", map(Tensor.data_ptr, column)) for column in columns]
        # A storage can be freed or cut under a tensor that keeps its shape; it is elsewhere then.
        before = self._addresses or [array("q")] * len(columns)
        for column, now, then in zip(columns, addresses, before, strict=True):
            if now != then and not all(map(is_held, column)):
                return False
        self._addresses = addresses
        for column, now in enumerate(addresses):
            if len(now) == len(columns[0]):
                self._tasks[column::FIELDS] = now
                continue
            for i, address in zip(self._members[column - 2], now, strict=True):
                self._tasks[i * FIELDS + column] = address
        options = array("d")
        for group in groups:
            options.extend(options_of(group))
        run_kernel(self._tasks, options, columns[0])
        return True
