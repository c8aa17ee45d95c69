"""The step of the tensors of the step before, by launches that are ready."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_adam_mini.optim.backends.prepared import GRAD, PARAM, Watch
from lightning_adam_mini.optim.backends.triton.plan import Plan
from lightning_adam_mini.optim.backends.triton.step import is_there, key_of, options_of

_SLOTS = ("exp_avg", "exp_avg_sq", "step", "exp_avg_scale", "exp_avg_sq_col")


class Prepared:
    """A step that is ready to be taken again.

    Args:
        groups: The optimizer's groups, each of whose parameters with a gradient the kernels have just stepped.
        state: The state of each parameter.
        plans: For each of these parameters, in order, what ``Triton.plan`` gave.
        tables: What the step keeps from step to step.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        state: Mapping[Tensor, Mapping[str, Any]],
        plans: Sequence[Plan],
        tables: MutableMapping[Any, Any],
    ) -> None:
        self._watch = Watch(groups, state, _SLOTS)
        self._plans = plans
        members: dict[Any, list[int]] = {}
        for i, p in enumerate(p for group in groups for p in group["params"] if p.grad is not None):
            members.setdefault(key_of(p, state[p]), []).append(i)
        self._batches = [(tables[key], some) for key, some in members.items()]
        self._on_gpu = any(batch.device.type == "cuda" for batch, _ in self._batches)
        self._lrs = self._addresses_of_lrs(groups)

    def _addresses_of_lrs(self, groups: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """For each batch, where each group's learning rate is read; 0 if not on the device."""
        addresses = []
        for batch, _ in self._batches:
            batch.fresh_lrs = {}
            addresses.append([batch.address_of_lr(g, group["lr"]) if is_there(group["lr"]) else 0 for g, group in enumerate(groups)])
        return addresses

    def step(self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]]) -> bool:
        """Take the step if all is as it was; else do nothing. Nothing waits for the device.

        Args:
            groups: The optimizer's groups, with the parameters that they had.
            state: The state of each parameter.

        Returns:
            Whether it was taken.
        """
        if self._on_gpu and torch.cuda.is_current_stream_capturing():
            return False  # what a graph reads has to be kept for good, and such a step is taken once
        options = array("d")
        for group in groups:
            options.extend(options_of(group))
        lrs = self._addresses_of_lrs(groups)
        seen = self._watch.look(groups, state)
        if seen is None:
            return False
        params, grads = seen.columns[PARAM], seen.columns[GRAD]
        others = lrs != self._lrs or any(moved for column, moved in enumerate(seen.moved) if column != GRAD)
        self._lrs = lrs
        for (batch, members), of_groups in zip(self._batches, lrs, strict=True):
            if others or (seen.moved[GRAD] and not batch.move_gradients(array("q", map(self._watch.addresses[GRAD].__getitem__, members)))):
                batch.begin()
                for i in members:
                    g = self._watch.group_of[i]
                    batch.add(params[i], grads[i], state[params[i]], self._plans[i], g, of_groups[g], ())
        for batch, _ in self._batches:
            batch.launch(options)
        torch.autograd.graph.increment_version(params)
        return True
