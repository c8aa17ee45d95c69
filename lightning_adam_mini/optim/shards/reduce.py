"""Sums over ranks: of the blocks that a sharding cuts, all packed into one all-reduce a process group, and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from lightning_adam_mini._sums import second_moment_dtype
from lightning_adam_mini.optim.shards.part import Part


class _Packing(NamedTuple):
    """Where the sums of cut blocks lie: ``source`` among the sums of a batch, ``slot`` in what a group reduces, of ``size`` slots."""

    group: Any
    source: Tensor
    slot: Tensor
    size: int


class _Batch:
    """Parts whose sums have one dtype and device."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts
        self.sizes = torch.empty(0)
        self.lengths: list[int] = []
        self.packings: list[_Packing] = []


class CutSums:
    """Mean squares over all ranks of the blocks of parameters that a sharding cuts.

    Which blocks more than one rank holds is asked once, of all ranks. From then on a step costs one all-reduce a process group, of four
    bytes per block that is cut, and none where none is.

    Args:
        parts: What this rank holds of each parameter, in an order that all ranks share.
        like: A tensor a part with the dtype and device of what the rank holds.
    """

    def __init__(self, parts: Sequence[Part], like: Sequence[Tensor]) -> None:
        kinds: dict[tuple[torch.dtype, torch.device], list[Part]] = {}
        for part, tensor in zip(parts, like, strict=True):
            kinds.setdefault((second_moment_dtype(tensor.dtype), tensor.device), []).append(part)
        holders = _count_holders(parts)
        self._batches = {kind: self._pack(_Batch(some), holders, kind) for kind, some in kinds.items()}

    @staticmethod
    def _pack(batch: _Batch, holders: dict[Part, Tensor], kind: tuple[torch.dtype, torch.device]) -> _Batch:
        dtype, device = kind
        flat = [part.sizes(torch.device("cpu")).reshape(-1) for part in batch.parts]
        batch.lengths = [len(sizes) for sizes in flat]
        batch.sizes = torch.cat(flat).to(device, dtype)
        found: dict[Any, list[tuple[Tensor, Tensor, int]]] = {}
        start = 0
        for part, length in zip(batch.parts, batch.lengths, strict=True):
            is_cut = torch.ones_like(holders[part], dtype=torch.bool) if part.needs_all else holders[part] > 1
            number = (is_cut.reshape(-1).cumsum(0) - 1).view(is_cut.shape)
            source = is_cut[part.block_slices()].reshape(-1).nonzero().reshape(-1)
            slot = number[part.block_slices()].reshape(-1)[source]
            for group in part.cutting:
                found.setdefault(group, []).append((source + start, slot, int(is_cut.sum())))
            start += length
        for group, entries in found.items():
            slots, size = [], 0
            for _, slot, count in entries:
                slots.append(slot + size)
                size += count
            if size:
                source = torch.cat([source for source, _, _ in entries])
                batch.packings.append(_Packing(group, source.to(device), torch.cat(slots).to(device), size))
        return batch

    def means(self, grads: dict[Part, Tensor]) -> dict[Part, Tensor]:
        """Mean of g² over each block of each part's window. Every rank has to call it, with the same parts' gradients or without any.

        Args:
            grads: What this rank holds of the gradients, by part. Parts without one count as zero.
        """
        means: dict[Part, Tensor] = {}
        for (dtype, device), batch in self._batches.items():
            sums = torch.cat(
                [
                    part.sum_square(grads[part]).reshape(-1) if part in grads else torch.zeros(length, dtype=dtype, device=device)
                    for part, length in zip(batch.parts, batch.lengths, strict=True)
                ]
            )
            for group, source, slot, size in batch.packings:
                there = batch.parts[0].device
                packed = torch.zeros(size, dtype=dtype, device=device).index_copy_(0, slot, sums[source])
                moved = packed.to(there) if there.type != device.type else packed
                dist.all_reduce(moved, group=group)
                sums.index_copy_(0, source, moved.to(device)[slot])
            for part, mean in zip(batch.parts, sums.div_(batch.sizes).split(batch.lengths), strict=True):
                means[part] = mean.view(part.window.block_shape)
        return means


def _count_holders(parts: Sequence[Part]) -> dict[Part, Tensor]:
    """How many ranks hold some of each block of the whole tensor."""
    holders: dict[Part, Tensor] = {}
    for part in parts:
        here = torch.zeros(part.layout.block_shape, dtype=torch.int32)
        here[part.block_slices()] = (part.counts > 0).int()
        holders[part] = here
    for group in dict.fromkeys(group for part in parts for group in part.cutting):
        some = [part for part in parts if group in part.cutting]
        packed = torch.cat([holders[part].reshape(-1) for part in some]).to(some[0].device)
        dist.all_reduce(packed, group=group)
        for part, values in zip(some, packed.cpu().split([holders[part].numel() for part in some]), strict=True):
            holders[part] = values.view(part.layout.block_shape)
    return holders


def add_up(sums: Tensor, part: Part) -> Tensor:
    """Sums over the blocks of a part's window of all ranks that may hold parts of them."""
    full = sums.new_zeros(part.layout.block_shape)
    full[part.block_slices()] = sums
    full = full.to(part.device)
    for group in part.cutting:
        dist.all_reduce(full, group=group)
    return full.to(sums.device)[part.block_slices()]


def gather_blocks(parts: Sequence[Part], values: Sequence[Tensor], everywhere: bool) -> list[Tensor]:
    """Second moments from the ranks that know them. Every rank has to call it.

    Args:
        parts: What this rank holds of some parameters.
        values: The second moments of their windows' blocks, of which those that the rank holds nothing of are not right.
        everywhere: Whether all blocks of the parameters are wanted; else those of the window.

    Returns:
        Right second moments, in the ``block_shape`` of the whole layout or of the window. None is negative, so the largest is right.
    """
    results: list[Tensor] = []
    for part, value in zip(parts, values, strict=True):
        known = torch.where((part.counts > 0).to(value.device), value, 0)
        if everywhere:
            full = known.new_zeros(part.layout.block_shape)
            full[part.block_slices()] = known
            known = full
        results.append(known)
    kinds: dict[tuple[torch.dtype, torch.device, tuple[Any, ...]], list[int]] = {}
    for i, (part, result) in enumerate(zip(parts, results, strict=True)):
        kinds.setdefault((result.dtype, result.device, part.groups if everywhere else part.cutting), []).append(i)
    for (_, device, groups), at in kinds.items():
        if not groups:
            continue
        packed = torch.cat([results[i].reshape(-1) for i in at]).to(parts[at[0]].device)
        for group in groups:
            dist.all_reduce(packed, op=dist.ReduceOp.MAX, group=group)
        for i, values_of_i in zip(at, packed.to(device).split([results[i].numel() for i in at]), strict=True):
            results[i] = values_of_i.view(results[i].shape)
    return results


def agree(problem: str | None, groups: Sequence[Any]) -> str | None:
    """A problem that any rank of some process groups has, the same on all of them."""
    for group in groups:
        found: list[str | None] = [None] * dist.get_world_size(group)
        dist.all_gather_object(found, problem, group=group)
        problem = next((text for text in found if text is not None), None)
    return problem
