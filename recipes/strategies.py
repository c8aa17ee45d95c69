"""Strategies of Lightning that its own classes keep from running on a CPU."""

from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
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

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        # Offloaded to the CPU, as Lightning has it, all moments would be one: torch takes for a copy what is none there.
        if self._state_dict_type != "full":
            return super().optimizer_state(optimizer)
        from torch.distributed.fsdp import (
            FullOptimStateDictConfig,
            FullStateDictConfig,
            FullyShardedDataParallel,
            OptimStateKeyType,
            StateDictType,
        )

        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        assert self.model is not None
        settings = (FullStateDictConfig(rank0_only=True), FullOptimStateDictConfig(offload_to_cpu=False, rank0_only=True))
        with FullyShardedDataParallel.state_dict_type(self.model, StateDictType.FULL_STATE_DICT, *settings):
            state_dict = FullyShardedDataParallel.optim_state_dict(self.model, optimizer)
        if self.global_rank == 0:
            state_dict = FullyShardedDataParallel.rekey_optim_state_dict(state_dict, OptimStateKeyType.PARAM_ID, self.model)
        return state_dict


class _IndexedCPU:
    index = torch.device("cpu")
    type = "cpu"
