"""What an optimizer's state holds, in bytes: of a sharded parameter, this rank's."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from lightning_adam_mini.optim.shards.dtensor import local


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
    states = [state for state in optimizer.state.values() if isinstance(state, dict)]  # users keep other things there too
    tensors = [local(value) for state in states for value in state.values() if isinstance(value, Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


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
    return sum(2 * local(p).numel() * p.element_size() + 4 for p, state in optimizer.state.items() if isinstance(p, Tensor) and state)
