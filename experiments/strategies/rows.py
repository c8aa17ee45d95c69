"""The strategies that are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn

from recipes.strategies import CPUDeepSpeedStrategy, CPUFSDPStrategy


class Row(NamedTuple):
    """A strategy.

    Attributes:
        name: What the table calls it.
        make: Makes it for a number of ranks, with checkpoints that are sharded or whole.
        sharding: What the network does in ``configure_model``.
        ranks: Ranks that it is compared on.
        shards: Whether it shards parameters, and so has sharded checkpoints.
        momentum: What first moments are kept in; empty for the parameters' dtype. If given, the network is ten times as wide.
        zero: Whether it is DeepSpeed's ZeRO, whose checkpoints are its own, for as many ranks.
        precision: Lightning's. In 16 bits ZeRO's steps are compared with the same in one process, from the same gradients.
    """

    name: str
    make: Callable[[int, bool], Any]
    sharding: tuple[str, ...] = ()
    ranks: int = 2
    shards: bool = True
    momentum: str = ""
    zero: bool = False
    precision: Literal["32-true", "bf16-mixed"] = "32-true"


def _model_parallel(data: bool, tensor: int | None) -> Callable[[int, bool], Any]:
    def make(ranks: int, sharded: bool) -> ModelParallelStrategy:
        over_tensors = (ranks if tensor is None else min(tensor, ranks)) if not data or tensor else 1
        return ModelParallelStrategy(ranks // over_tensors, over_tensors, sharded, process_group_backend="gloo")

    return make


def _fsdp1(ranks: int, sharded: bool, **kwargs: Any) -> CPUFSDPStrategy:
    return CPUFSDPStrategy(auto_wrap_policy={nn.Linear, nn.Embedding}, state_dict_type="sharded" if sharded else "full", **kwargs)


def _zero(stage: int, **kwargs: Any) -> Callable[[int, bool], Any]:
    return lambda ranks, sharded: CPUDeepSpeedStrategy(stage=stage, **kwargs)


ROWS = {
    row.name: row
    for row in (
        Row("DDP", lambda ranks, sharded: DDPStrategy(process_group_backend="gloo"), shards=False),
        Row(
            "DDP, static graph",
            lambda ranks, sharded: DDPStrategy(process_group_backend="gloo", static_graph=True, gradient_as_bucket_view=True),
            shards=False,
        ),
        Row("FSDP2", _model_parallel(True, 0), ("fsdp2",)),
        Row("FSDP2, 4 ranks", _model_parallel(True, 0), ("fsdp2",), ranks=4),
        Row("FSDP2, CPU offload", _model_parallel(True, 0), ("fsdp2", "offload")),
        Row("tensor parallel", _model_parallel(False, None), ("tensor",)),
        Row("FSDP2 x tensor parallel", _model_parallel(True, 2), ("fsdp2", "tensor"), ranks=4),
        Row("FSDP1", _fsdp1),
        Row("FSDP1, 4 ranks", _fsdp1, ranks=4),
        Row("FSDP1, one unit", lambda ranks, sharded: CPUFSDPStrategy(state_dict_type="sharded" if sharded else "full")),
        Row("FSDP1, checkpointing", lambda ranks, sharded: _fsdp1(ranks, sharded, activation_checkpointing_policy={nn.Linear})),
        *(Row(f"ZeRO {stage}", _zero(stage), shards=False, zero=True) for stage in (1, 2, 3)),
        *(Row(f"ZeRO {stage}, 4 ranks", _zero(stage), shards=False, zero=True, ranks=4) for stage in (1, 2, 3)),
        *(Row(f"ZeRO {stage}, CPU offload", _zero(stage, offload_optimizer=True), shards=False, zero=True) for stage in (2, 3)),
        *(Row(f"ZeRO {stage}, bf16", _zero(stage), shards=False, zero=True, precision="bf16-mixed") for stage in (1, 2, 3)),
        Row("FSDP2, bfloat16 momentum", _model_parallel(True, 0), ("fsdp2",), momentum="bfloat16"),
        Row("FSDP1, bfloat16 momentum", _fsdp1, momentum="bfloat16"),
        Row("DDP, 8-bit momentum", lambda ranks, sharded: DDPStrategy(process_group_backend="gloo"), shards=False, momentum="8bit"),
        Row("FSDP2, 8-bit momentum", _model_parallel(True, 0), ("fsdp2",), momentum="8bit"),
        Row("tensor parallel, 8-bit momentum", _model_parallel(False, None), ("tensor",), momentum="8bit"),
        Row("FSDP1, 8-bit momentum", _fsdp1, momentum="8bit"),
    )
}
"""By name."""
