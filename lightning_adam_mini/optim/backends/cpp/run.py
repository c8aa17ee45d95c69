"""The call of the compiled kernel."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_adam_mini.optim.backends.cpp.build import FIELDS, load_kernel

STATE = ("exp_avg", "exp_avg_sq", "step", "exp_avg_scale", "exp_avg_sq_col")
"""What the kernel takes of a parameter's state; it need not have the last two."""
Row: TypeAlias = tuple[int, ...]
"""The fields of a parameter's task that do not change from step to step."""


def options_of(group: Mapping[str, Any]) -> tuple[float, ...]:
    """The options of a group as the kernel takes them."""
    beta1, beta2 = group["betas"]
    values = (group["lr"], beta1, beta2, group["eps"], group["weight_decay"], group["decoupled_weight_decay"], group["maximize"])
    return tuple(map(float, values))


def run_kernel(tasks: array[int], groups: array[float], params: Sequence[Tensor]) -> None:
    """Step tensors.

    Args:
        tasks: The fields of each tensor's task, one after the other.
        groups: The options of each group.
        params: The parameters, of which autograd has to know that they changed.
    """
    kernel = load_kernel()
    assert not isinstance(kernel, str)
    with torch.profiler.record_function("lightning_adam_mini::step"):  # the profiler does not see what is past torch's dispatcher
        kernel.adam_mini_step(tasks.buffer_info()[0], len(tasks) // FIELDS, groups.buffer_info()[0], torch.get_num_threads())
    torch.autograd.graph.increment_version(params)
