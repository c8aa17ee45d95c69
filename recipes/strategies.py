"""Strategies of Lightning that its own classes keep from running on a CPU."""

from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch.nn import Module
from typing_extensions import override


class CPUFSDPStrategy(FSDPStrategy):
    """FSDPStrategy on CPUs, with gloo: for tests, and to try a configuration out before it goes to GPUs.

    Args:
        kwargs: Those of Lightning's ``FSDPStrategy``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(process_group_backend="gloo", **kwargs)

    @override
    def _setup_model(self, model: Module) -> Module:
        # Lightning passes the device's index, which a CPU does not have; FSDP would look for a GPU then.
        index = type(self).root_device
        try:
            type(self).root_device = property(lambda _: _IndexedCPU())  # type: ignore[assignment,method-assign]
            return super()._setup_model(model)
        finally:
            type(self).root_device = index  # type: ignore[method-assign]


class _IndexedCPU:
    index = torch.device("cpu")
    type = "cpu"
