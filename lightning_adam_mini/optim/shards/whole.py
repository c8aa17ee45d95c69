"""All of what ranks hold parts of, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from lightning_adam_mini._sums import second_moment_dtype
from lightning_adam_mini.optim.shards.dtensor import is_dtensor, local, whole, with_local
from lightning_adam_mini.optim.shards.flat import FlatShard


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
        inverse = sorted(range(len(flat.order)), key=flat.order.__getitem__)
        return full.view([flat.shape[d] for d in flat.order]).permute(inverse)
    assert values is not None
    if not is_dtensor(p):
        return values
    here = local(values).to(p.device_mesh.device_type)  # type: ignore[attr-defined]  # shards that are offloaded come back
    return whole(with_local(p, here))


def stepped_anywhere(parameters: Iterable[Tensor], here: Mapping[Tensor, object], flat: Mapping[Tensor, FlatShard]) -> Iterator[Tensor]:
    """Those of some parameters that any rank has a state of. Every rank has to call it, and to go through it.

    Args:
        parameters: The parameters, in an order that all ranks share.
        here: This rank's states.
        flat: Which range of each this rank holds, of those that FSDP1 has flattened.
    """
    parameters = list(parameters)
    ranges = [p for p in parameters if p in flat]
    known: dict[Tensor, bool] = {}
    for group, device in dict.fromkeys((flat[p].group, flat[p].device) for p in ranges):
        some = [p for p in ranges if flat[p].group is group]
        count = torch.tensor([float(bool(here.get(p))) for p in some], device=device)
        torch.distributed.all_reduce(count, op=torch.distributed.ReduceOp.MAX, group=group)
        known.update(zip(some, (count > 0).tolist(), strict=True))
    yield from (p for p in parameters if known.get(p, bool(here.get(p))))
