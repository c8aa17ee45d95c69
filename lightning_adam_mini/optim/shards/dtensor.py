"""Parameters that are DTensors: FSDP2, tensor parallelism, and meshes of both. The only file that knows DTensor.

The second moments of a DTensor are written to state dicts as a DTensor of ``block_shape``: sharded like the parameter along dimensions
that separate blocks, replicated elsewhere. So its global shape, and with it a checkpoint, does not depend on the number of ranks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.matrix_layout import MatrixLayout
from lightning_adam_mini.optim.shards.part import Part, apart_in, window_of


def is_dtensor(tensor: Any) -> bool:
    """Whether a tensor is a DTensor; does not import what no one uses."""
    if type(tensor) in (Tensor, torch.nn.Parameter) or not isinstance(tensor, Tensor) or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: all of it, unless it is a DTensor."""
    if not is_dtensor(tensor):
        return tensor
    part = tensor.to_local()  # type: ignore[attr-defined]
    return part.wait() if type(part).__name__ == "AsyncCollectiveTensor" else part


def local_gradient(p: Any, grad: Any) -> Tensor:
    """What this rank holds of a DTensor's gradient, sharded like the parameter; a pending sum is carried out."""
    if is_dtensor(grad) and tuple(grad.placements) != tuple(p.placements):
        grad = grad.redistribute(placements=p.placements)
    return local(grad)


def dtensor_part(p: Any, layout: BlockLayout, name: str) -> Part:
    """What this rank holds of a DTensor.

    Args:
        p: The DTensor.
        layout: Its blocks.
        name: Its name, for errors.

    Raises:
        ValueError: If it is sharded in a way that its blocks cannot follow.
    """
    if layout.is_per_parameter:  # which may have dims of length 1
        layout = BlockLayout.per_parameter(layout.shape)
    offsets, sizes = _rectangle(p, name)
    mesh = p.device_mesh
    sharded = [(i, placement) for i, placement in enumerate(p.placements) if not placement.is_replicate() and mesh.size(i) > 1]
    if isinstance(layout, MatrixLayout):
        along = _cut_along(p, layout, [placement for _, placement in sharded], name)
        rows = BlockLayout(layout.shape, layout.dims)
    else:
        along, rows = None, layout

    def part(margin: BlockLayout, apart: tuple[bool, ...]) -> Part:
        window, corner = window_of(margin, apart, offsets, sizes)
        return Part(
            margin,
            apart,
            window,
            corner,
            (window.shard([o - c for o, c in zip(offsets, corner, strict=True)], sizes),),
            None,
            cutting=tuple(mesh.get_group(i) for i, placement in sharded if not apart[placement.dim]),
            groups=tuple(mesh.get_group(i) for i, _ in sharded),
            device=torch.device(mesh.device_type),
        )

    # Of matrices that are cut, each rank keeps all rows: they are few, and with all of them it knows how large a matrix is.
    aparts = apart_in(rows) if along is None else ((False,) * len(sizes),)
    first, *second = (part(margin, apart) for margin, apart in zip(rows.margins, aparts, strict=True))
    matrices = layout if isinstance(layout, MatrixLayout) else None
    return replace(first, crossing=second[0] if second else None, matrices=matrices, along=along)


def _cut_along(p: Any, layout: MatrixLayout, sharded: list[Any], name: str) -> int | None:
    """The dimension along which the matrices of a DTensor are cut; None if each lies on one rank.

    Raises:
        ValueError: If they are cut in another way than FSDP2 cuts.
    """
    from torch.distributed.tensor import Shard

    if all(placement.dim in layout.stacked for placement in sharded):
        return None
    if len(sharded) > 1 or type(sharded[0]) is not Shard:
        raise ValueError(
            f"Parameter {name!r} of shape {tuple(p.shape)} has matrices that are cut by {tuple(p.placements)}, but updates are"
            " orthogonalised only of what is sharded over one dimension of the mesh, as by fully_shard. Override it"
            f" (overrides={{{name!r}: 'factored'}}), or choose the partition 'auto'."
        )
    return sharded[0].dim


def _rectangle(p: Any, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where what this rank holds begins in the tensor, and its sizes."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    unclear = [str(placement) for placement in p.placements if not placement.is_replicate() and not hasattr(placement, "dim")]
    sizes, offsets = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    here = tuple(p.to_local().shape)
    if unclear or tuple(sizes) != here:
        raise ValueError(
            f"AdamMini cannot tell which part of parameter {name!r} of shape {tuple(p.shape)} this rank holds, because its placements are"
            f" {tuple(p.placements)} and its local shape is {here}. Shard it with Shard(dim), as fully_shard and parallelize_module do, or"
            " give it to another optimizer."
        )
    return tuple(min(o, n) for o, n in zip(offsets, p.shape, strict=True)) if 0 in here else tuple(offsets), here


def momentum_like(p: Any, values: Tensor) -> Tensor:
    """A first moment, whole or sharded in whichever way, sharded like the parameter."""
    if is_dtensor(values):
        return values if tuple(values.placements) == tuple(p.placements) else values.redistribute(p.device_mesh, p.placements)  # type: ignore[attr-defined]
    offsets, sizes = _rectangle(p, "")
    return with_local(p, values[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))].to(p.device, copy=True).contiguous())


def with_local(p: Any, values: Tensor) -> Tensor:
    """A DTensor like ``p`` that holds ``values`` on this rank."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(values, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def blocks_to_dtensor(p: Any, part: Part, blocks: Tensor) -> Tensor:
    """Second moments of a part's window, which are right on every rank, as a DTensor of the whole layout's ``block_shape``."""
    from torch.distributed.tensor import DTensor, Replicate

    placements = [placement if not placement.is_replicate() and part.apart[placement.dim] else Replicate() for placement in p.placements]
    shape = torch.Size(part.layout.block_shape)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(blocks, p.device_mesh, placements, run_check=False, shape=shape, stride=stride)


def whole(tensor: Any) -> Tensor:
    """All of a tensor on this rank; of a DTensor, gathered by all its ranks."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor
