"""What an optimizer's state holds, in bytes: of a sharded parameter, this rank's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_adam_mini.optim.shards.dtensor import local
from lightning_adam_mini.optim.zero import FlatAdamMini


def plain_tensors(value: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    """The plain tensors inside a value: of containers, of tensor subclasses (quantized, sharded), and of objects' attributes.

    Args:
        value: Anything.
        seen: Ids of what was gone through before.

    Example:
        >>> import torch
        >>> [tuple(tensor.shape) for tensor in plain_tensors({"a": torch.zeros(2), "b": [torch.zeros(3), 1.0]})]
        [(2,), (3,)]
    """
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        names = value.__tensor_flatten__()[0] if hasattr(value, "__tensor_flatten__") else ()  # pyright: ignore[reportAttributeAccessIssue]
        if not names:
            yield value
        for name in names:
            yield from plain_tensors(getattr(value, name), seen)
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        parts: Iterable[object] = value.values()
    elif isinstance(value, (list, tuple)):
        parts = value
    elif hasattr(value, "__dict__") and not callable(value):  # GaLore keeps its projections so
        parts = vars(value).values()
    else:
        return
    for part in parts:
        yield from plain_tensors(part, seen)


def bytes_held(values: Iterable[object]) -> int:
    """Bytes of the storages behind some values, each counted once.

    Args:
        values: Anything that holds tensors.

    Example:
        >>> import torch
        >>> a = torch.zeros(10)
        >>> bytes_held([a, a[:5], {"b": torch.zeros(2, dtype=torch.bfloat16)}])
        44
    """
    storages = [tensor.untyped_storage() for value in values for tensor in plain_tensors(value)]
    return sum({(storage.device, storage.data_ptr()): storage.nbytes() for storage in storages}.values())


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes that the state of an optimizer really holds, over all devices: the storages behind its tensors, each counted once.

    What hides inside tensor subclasses counts too: the codes and scales of quantized states, this rank's part of a sharded one. Of an
    optimizer of ZeRO's, the state of the AdamMini that it wraps.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(10))
        >>> p.grad = torch.ones(10)
        >>> optimizer = torch.optim.AdamW([p])
        >>> optimizer.step()
        >>> state_bytes(optimizer)
        84
    """
    return bytes_held(state for _, state in _states(optimizer))


def adamw_bytes(optimizer: Optimizer) -> int:
    """Bytes that AdamW's state would hold of the parameters that an optimizer has stepped.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(10))
        >>> p.grad = torch.ones(10)
        >>> optimizer = torch.optim.SGD([p], momentum=0.9)
        >>> optimizer.step()
        >>> adamw_bytes(optimizer)
        84
    """
    return sum(2 * local(p).numel() * p.element_size() + 4 for p, state in _states(optimizer) if isinstance(p, Tensor) and state)


def _states(optimizer: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What the state of an optimizer is of, with the state."""
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, FlatAdamMini):
        optimizer = inner
    for one in optimizer.pieces() if isinstance(optimizer, FlatAdamMini) else (optimizer,):
        yield from ((p, state) for p, state in one.state.items() if isinstance(state, dict))  # users keep other things there too
