"""What an optimizer's state holds, in bytes."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes that the state of an optimizer really holds, over all devices: the storage behind its tensors, each counted once.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(10))
        >>> p.grad = torch.ones(10)
        >>> optimizer = torch.optim.AdamW([p])
        >>> optimizer.step()
        >>> state_bytes(optimizer)
        84
    """
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    }
    return sum(storages.values())
