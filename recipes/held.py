"""Bytes that tensors really hold, also those that hide inside others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer


def plain_tensors(value: object) -> Iterator[Tensor]:
    """Go through the plain tensors of a value: of containers, of tensor subclasses such as quantized ones, and of objects' attributes.

    Args:
        value: Anything.

    Example:
        >>> [tuple(tensor.shape) for tensor in plain_tensors({"a": torch.zeros(2), "b": [torch.zeros(3), 1.0]})]
        [(2,), (3,)]
    """
    if isinstance(value, Tensor):
        names = value.__tensor_flatten__()[0] if hasattr(value, "__tensor_flatten__") else ()  # pyright: ignore[reportAttributeAccessIssue]
        if not names:
            yield value
        for name in names:
            yield from plain_tensors(getattr(value, name))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from plain_tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from plain_tensors(part)
    elif hasattr(value, "__dict__") and not callable(value):  # GaLore keeps its projections so
        yield from plain_tensors(vars(value))


def bytes_held(values: Iterable[object]) -> int:
    """Return the bytes of the storages behind some values, each counted once.

    Args:
        values: Anything that holds tensors.

    Example:
        >>> a = torch.zeros(10)
        >>> bytes_held([a, a[:5], {"b": torch.zeros(2, dtype=torch.bfloat16)}])
        44
    """
    storages = [tensor.untyped_storage() for value in values for tensor in plain_tensors(value)]
    return sum({(storage.device, storage.data_ptr()): storage.nbytes() for storage in storages}.values())


def state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of an optimizer's state.

    Args:
        optimizer: An optimizer that has taken a step.
    """
    return bytes_held(optimizer.state.values())


def gradient_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's gradients.

    Args:
        model: The model, after a backward pass.
    """
    return bytes_held(parameter.grad for parameter in model.parameters())
