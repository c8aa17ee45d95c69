"""Whether a step is one of the tensors of the step before: what every backend asks that can take such a step again.

A step of many small tensors is mostly Python, and what it has to know of each tensor hardly ever changes from step to step. What was
checked one by one is compared with what comes now by the guards of torch.compile, which do so in C++: type, dtype, device, shape and
strides of every parameter, gradient and state. Where anything differs, all are looked at one by one again.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor

from lightning_adam_mini.optim.segments import in_memory_of, is_held

TensorGuards: Any = None
with contextlib.suppress(ImportError):  # no public contract of torch: without it each tensor is looked at in Python in each step
    from torch._C._dynamo.guards import TensorGuards

PARAM, GRAD, FIRST_SLOT = range(3)
"""Columns: of parameters, of gradients, and from the third on of what is kept of their state."""


class Seen(NamedTuple):
    """What is about to be stepped.

    Attributes:
        columns: Parameters, gradients, and for each slot of their state what :attr:`Watch.members` have there.
        moved: For each column, whether tensors lie elsewhere than before.
    """

    columns: list[list[Tensor]]
    moved: list[bool]


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


class Watch:
    """Tells whether what is about to be stepped is what has just been stepped.

    Args:
        groups: The optimizer's groups, of which each parameter that has a gradient was stepped.
        state: The state of each parameter.
        slots: Names of what is read of a state, if it is there.

    Attributes:
        group_of: The number of the group of each parameter that has a gradient.
        members: For each slot the numbers of the parameters, among those with gradients, that have it; None if all.
        addresses: For each column where its tensors were when they were last looked at.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]], slots: Sequence[str]) -> None:
        self._groups: list[_Group] = []
        self.group_of: list[int] = []
        stepped: list[Tensor] = []
        for g, group in enumerate(groups):
            has_grad = [p.grad is not None for p in group["params"]]
            self.group_of += [g] * sum(has_grad)
            stepped += [p for p in group["params"] if p.grad is not None]
            self._groups.append(_Group(None if all(has_grad) else has_grad, _modes(group)))
        have = [[i for i, p in enumerate(stepped) if name in state[p]] for name in slots]
        self._slots = slots
        self.members: list[list[int] | None] = [None if len(some) == len(stepped) else some for some in have]
        self.addresses: list[array[int]] = []
        self._guards: Any = None
        columns = self._columns(groups, state)
        if (
            columns is not None
            and TensorGuards is not None
            and all(in_memory_of(p, grad) is grad for p, grad in zip(columns[PARAM], columns[GRAD], strict=True))
        ):
            self.addresses = _addresses(columns)
            self._guards = TensorGuards(*chain(*columns), dynamic_dims_sizes=None, dynamic_dims_strides=None)

    def _columns(self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]]) -> list[list[Any]] | None:
        """All tensors; None if other parameters have gradients or one has no state."""
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
            kept = (
                [s[name] for s in (states if some is None else map(states.__getitem__, some))]
                for name, some in zip(self._slots, self.members, strict=True)
            )
            return [params, grads, *kept]
        except KeyError:
            return None

    def look(self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]]) -> Seen | None:
        """Look at what is about to be stepped. Whoever does so has to follow what moved: it will not be told again.

        Args:
            groups: The optimizer's groups, with the parameters that they had.
            state: The state of each parameter.

        Returns:
            The tensors, or None if anything is not as it was.
        """
        if self._guards is None:
            return None
        columns = self._columns(groups, state)
        if columns is None or not self._guards.check(*chain(*columns)):
            return None
        addresses = _addresses(columns)
        moved = [now != then for now, then in zip(addresses, self.addresses, strict=True)]
        # A storage can be freed or cut under a tensor that keeps its shape; it is elsewhere then.
        for column, now, then, some in zip(columns, addresses, self.addresses, moved, strict=True):
            if some and not all(is_held(t) for t, a, b in zip(column, now, then, strict=True) if a != b):
                return None
        self.addresses = addresses
        return Seen(columns, moved)


def _addresses(columns: Sequence[Sequence[Tensor]]) -> list[array[int]]:
    return [array("q", map(Tensor.data_ptr, column)) for column in columns]
