"""How many bytes a forward pass keeps for the backward pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.workloads import Workload
from recipes.held import bytes_held, plain_tensors


class Activations(NamedTuple):
    """Bytes that are kept for the backward pass.

    Args:
        fixed: Whatever the batch.
        each: For each example more.
    """

    fixed: float
    each: float


def kept_bytes(workload: Workload, model: nn.Module, batch: int) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, the model's own tensors left out.

    Args:
        workload: The model's description; it has a loss.
        model: The model.
        batch: Examples.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: list[Tensor] = []  # alive until they are counted, so that no two have one address

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    assert workload.loss is not None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        workload.loss(model, batch)
    return bytes_held(tensor for value in kept for tensor in plain_tensors(value) if tensor.untyped_storage().data_ptr() not in own)


def activations(workload: Workload, model: nn.Module) -> Activations:
    """Measure a model's activations on two small batches.

    Args:
        workload: The model's description; it has a loss.
        model: The model.
    """
    two, four = (kept_bytes(workload, model, batch) for batch in (2, 4))
    each = (four - two) / 2
    return Activations(max(0.0, two - 2 * each), each)
