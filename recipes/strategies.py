"""What the recipes need to run under Lightning's sharding strategies, on GPUs and on CPUs."""

import logging
import os
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    OptimStateKeyType,
    StateDictType,
    fully_shard,
)
from torch.nn import Module, ModuleList, Sequential
from torch.optim import Optimizer
from typing_extensions import override


def shard_over_data(net: Module, mesh: DeviceMesh | None) -> None:
    """Shard a network by FSDP2, each of its stages and blocks a unit; under strategies other than ModelParallelStrategy, leave it alone.

    Args:
        net: The network.
        mesh: The module's ``device_mesh``.
    """
    if mesh is None or any(isinstance(module, FSDPModule) for module in net.modules()):
        return
    for child in net.children():
        for block in child.children() if isinstance(child, (Sequential, ModuleList)) else [child]:
            if any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(net, mesh=mesh["data_parallel"])


class CPUFSDPStrategy(FSDPStrategy):
    """FSDPStrategy on CPUs, with gloo: for tests, and to try a configuration out before it goes to GPUs.

    Args:
        kwargs: Those of Lightning's ``FSDPStrategy``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(process_group_backend="gloo", **kwargs)

    @override
    def _setup_model(self, model: Module) -> Module:
        if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
            return super()._setup_model(model)
        # Lightning would pass the device's index, which a CPU does not have, and FSDP look for a GPU.
        options = dict(self.kwargs)
        wrapped = FullyShardedDataParallel(
            model,
            cpu_offload=self.cpu_offload,
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            device_id=torch.device("cpu"),
            **options,
        )
        self.kwargs.pop("auto_wrap_policy", None)  # what is wrapped is not wrapped again
        try:
            return super()._setup_model(wrapped)
        finally:
            self.kwargs = options

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        # Offloaded to the CPU, as Lightning has it, all moments would be one: torch takes for a copy what is none there.
        if self._state_dict_type != "full":
            return super().optimizer_state(optimizer)
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        assert self.model is not None
        settings = (FullStateDictConfig(rank0_only=True), FullOptimStateDictConfig(offload_to_cpu=False, rank0_only=True))
        with FullyShardedDataParallel.state_dict_type(self.model, StateDictType.FULL_STATE_DICT, *settings):
            state_dict = FullyShardedDataParallel.optim_state_dict(self.model, optimizer)
        if self.global_rank == 0:
            state_dict = FullyShardedDataParallel.rekey_optim_state_dict(state_dict, OptimStateKeyType.PARAM_ID, self.model)
        return state_dict


class CPUDeepSpeedStrategy(DeepSpeedStrategy):
    """DeepSpeedStrategy on CPUs, with gloo: for tests, and to try a configuration out before it goes to GPUs.

    DeepSpeed takes CPUs if ``DS_ACCELERATOR=cpu`` is in the environment when it is first imported, which this strategy sees to.

    Args:
        kwargs: Those of Lightning's ``DeepSpeedStrategy``.
    """

    def __init__(self, **kwargs: Any) -> None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        super().__init__(process_group_backend="gloo", logging_batch_size_per_gpu=1, logging_level=logging.ERROR, **kwargs)

    @property
    @override
    def root_device(self) -> torch.device:
        return torch.device("cpu", self.local_rank)  # DeepSpeed wants an index

    @override
    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)  # without Lightning's check for a GPU

    @override
    def setup_distributed(self) -> None:
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()
