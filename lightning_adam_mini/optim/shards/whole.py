"""All of what ranks hold parts of, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_adam_mini._sums import second_moment_dtype
from lightning_adam_mini.optim.shards.dtensor import is_dtensor, local, whole, with_local
from lightning_adam_mini.optim.shards.flat import FlatShard
from lightning_adam_mini.optim.shards.part import in_shape


def whole_elements(p: Tensor, values: Tensor | None, flat: FlatShard | None = None) -> Tensor:
    """All of a second moment that has one value per element. Every rank that holds a part of the parameter has to call it.

    Args:
        p: The parameter.
        values: What this rank keeps, torch's AdamW or AdamMini; None where it holds nothing of what FSDP1 has flattened.
        flat: Which range this rank holds, of a parameter that FSDP1 has flattened.

    Returns:
        A tensor of the whole parameter's shape; ``values`` itself where all of it is here.
    """
    if flat is not None:
        full = torch.zeros(math.prod(flat.shape), dtype=second_moment_dtype(p.dtype), device=flat.device)
        if values is not None:
            full[flat.begin : flat.end] = values.reshape(-1).to(full.device)
        torch.distributed.all_reduce(full, group=flat.group)
        return in_shape(full, flat.shape, flat.order)
    assert values is not None
    if not is_dtensor(p):
        return values
    here = local(values).to(p.device_mesh.device_type)  # type: ignore[attr-defined]  # shards that are offloaded come back
    return whole(with_local(p, here))


def highest_steps(steps: Mapping[Tensor, Tensor | float], flat: Mapping[Tensor, FlatShard]) -> dict[Tensor, Tensor]:
    """Steps taken of parameters that FSDP1 has flattened, of which only other ranks may know. Every rank has to call it.

    Args:
        steps: Steps that this rank knows of, by parameter.
        flat: Which range of each this rank holds, in an order that all ranks share.

    Returns:
        Those of the parameters that any rank has stepped.
    """
    found: dict[Tensor, Tensor] = {}
    for group, device in dict.fromkeys((shard.group, shard.device) for shard in flat.values()):
        ours = [p for p, shard in flat.items() if shard.group is group]
        count = torch.tensor([float(steps[p]) if p in steps else 0.0 for p in ours]).to(device)
        torch.distributed.all_reduce(count, op=torch.distributed.ReduceOp.MAX, group=group)
        found.update((p, step) for p, step in zip(ours, count.cpu(), strict=True) if step > 0)
    return found
