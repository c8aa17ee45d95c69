"""Matrices of which each is orthogonalised by one rank, though several ranks have it, or have a part of it.

Where parameters are sharded, an owner is sent the parts of a momentum, and sends back the same parts of what it made of it: two
all-to-alls. Where all ranks have all matrices, each does its share of them, and one all-gather gives all to all. What follows, resizing and
NorMuon's rows, each rank does for what it holds: it is cheap, and so matrices travel in the dtype in which they are orthogonalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from lightning_adam_mini.optim.shards.part import Part


class Exchange:
    """Brings the parts of sharded parameters together, each parameter on one rank. Every rank has to make it, and call its methods.

    Owners go round within the parameters of one shape, which take the same time.

    Args:
        parts: What this rank holds of each parameter, in an order that all ranks share.
        dtypes: In which each travels.
    """

    def __init__(self, parts: Sequence[Part], dtypes: Sequence[torch.dtype]) -> None:
        self._parts = parts
        self._together: dict[tuple[Any, torch.dtype], list[int]] = {}
        for i, (part, dtype) in enumerate(zip(parts, dtypes, strict=True)):
            self._together.setdefault((part.groups[0], dtype), []).append(i)
        self._owned: dict[tuple[Any, torch.dtype], list[list[int]]] = {}  # by rank
        for key, numbers in self._together.items():
            ranks = dist.get_world_size(key[0])
            by_shape = sorted(numbers, key=lambda i: parts[i].layout.shape)  # in their order within a shape
            self._owned[key] = [by_shape[rank::ranks] for rank in range(ranks)]

    def bring(self, values: Sequence[Tensor]) -> dict[int, Tensor]:
        """Whole tensors of the parameters that this rank owns, by their place in ``parts``.

        Args:
            values: What this rank has of each.
        """
        whole: dict[int, Tensor] = {}
        for (group, dtype), owned in self._owned.items():
            own = owned[dist.get_rank(group)]
            sent = [[values[i] for i in some] for some in owned]
            shapes = [[_held_by(rank, self._parts[i]) for i in own] for rank in range(len(owned))]
            came = self._send(group, dtype, values, sent, shapes)
            whole.update((i, torch.cat(pieces, dim=self._parts[i].along or 0)) for i, *pieces in zip(own, *came, strict=True))
        return whole

    def back(self, updates: Mapping[int, Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        """The reverse of :meth:`bring`.

        Args:
            updates: Of the parameters that this rank owns.
            like: A tensor for each parameter of the shape of what this rank holds.
        """
        pieces: dict[int, Tensor] = {}
        for (group, dtype), owned in self._owned.items():
            own = owned[dist.get_rank(group)]
            sent = [[self._cut_for(rank, i, updates[i]) for i in own] for rank in range(len(owned))]
            came = self._send(group, dtype, like, sent, [[tuple(like[i].shape) for i in some] for some in owned])
            pieces.update((i, piece) for some, theirs in zip(owned, came, strict=True) for i, piece in zip(some, theirs, strict=True))
        return [pieces[i] for i in range(len(self._parts))]

    def _cut_for(self, rank: int, i: int, update: Tensor) -> Tensor:
        along = self._parts[i].along or 0
        return update.narrow(along, *_lines_of(rank, self._parts[i]))

    def _send(
        self,
        group: Any,
        dtype: torch.dtype,
        like: Sequence[Tensor],
        sent: Sequence[Sequence[Tensor]],
        shapes: Sequence[Sequence[tuple[int, ...]]],
    ) -> list[list[Tensor]]:
        """Send tensors to each rank, and return those that each has sent, which are of some shapes."""
        first = self._together[group, dtype][0]
        home, there = like[first].device, self._parts[first].device
        flat = torch.cat([one.reshape(-1) for some in sent for one in some] or [like[first].new_empty(0)]).to(dtype)
        if flat.device.type != there.type:  # parameters that are offloaded
            flat = flat.to(there)
        lengths = [[math.prod(shape) for shape in some] for some in shapes]
        came = flat.new_empty(sum(map(sum, lengths)))
        dist.all_to_all_single(came, flat, [*map(sum, lengths)], [sum(one.numel() for one in some) for some in sent], group=group)
        pieces = iter(came.to(home).split([n for some in lengths for n in some]))
        return [[next(pieces).view(shape) for shape in some] for some in shapes]


def _lines_of(rank: int, part: Part) -> tuple[int, int]:
    """Where along the dimension that is cut what a rank holds begins, and how long it is: as ``torch.chunk`` cuts."""
    size = part.layout.shape[part.along or 0]
    most = -(-size // dist.get_world_size(part.groups[0]))
    begin = min(rank * most, size)
    return begin, min(most, size - begin)


def _held_by(rank: int, part: Part) -> tuple[int, ...]:
    return tuple(_lines_of(rank, part)[1] if d == part.along else n for d, n in enumerate(part.layout.shape))


def add_up_rows(parts: Sequence[Part], sums: Sequence[Tensor]) -> list[Tensor]:
    """Sums over all ranks of a value per row, in one all-reduce a process group. Every rank has to call it.

    Args:
        parts: What this rank holds of each parameter.
        sums: Of each the sums over what this rank holds, of the ``block_shape`` of the rows.
    """
    total = list(sums)
    groups: dict[Any, list[int]] = {}
    for i, part in enumerate(parts):
        groups.setdefault((part.groups[0], sums[i].dtype), []).append(i)
    for (group, _), numbers in groups.items():
        packed = torch.cat([sums[i].reshape(-1) for i in numbers])
        moved = packed if packed.device.type == parts[numbers[0]].device.type else packed.to(parts[numbers[0]].device)
        dist.all_reduce(moved, group=group)
        for i, one in zip(numbers, moved.to(packed.device).split([sums[i].numel() for i in numbers]), strict=True):
            total[i] = one.view(sums[i].shape)
    return total


def share(
    batches: Sequence[Sequence[Tensor]], dtypes: Sequence[torch.dtype], run: Callable[[int, Tensor], Tensor], group: Any
) -> list[Tensor]:
    """Let each rank do its share of matrices that all ranks have, and give all to all. Every rank has to call it with the same.

    Args:
        batches: Tensors of shape (number, rows, columns), of the same rows and columns within a batch.
        dtypes: Of what comes out, for each batch.
        run: What is to be done with some matrices of a batch.
        group: The ranks.

    Returns:
        For each batch what came out, of shape (all numbers, rows, columns).
    """
    ranks, me, first = dist.get_world_size(group), dist.get_rank(group), 0
    spans: list[list[tuple[int, int]]] = []  # of each batch the matrices of each rank
    for batch in batches:
        each, more = divmod(sum(map(len, batch)), ranks)
        turns = [(rank - first) % ranks for rank in range(ranks)]  # those that do one more go round
        spans.append([(turn * each + min(turn, more), (turn + 1) * each + min(turn + 1, more)) for turn in turns])
        first = (first + more) % ranks
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, (batch, dtype) in enumerate(zip(batches, dtypes, strict=True)):
        kinds.setdefault((dtype, batch[0].device), []).append(i)
    results: dict[int, Tensor] = {}
    for (dtype, device), numbers in kinds.items():
        sizes = [[(end - begin) * batches[i][0][0].numel() for begin, end in spans[i]] for i in numbers]
        most = max(map(sum, zip(*sizes, strict=True)))
        own = torch.zeros(most, dtype=dtype, device=device)
        places = own.split([*(of_rank[me] for of_rank in sizes), most - sum(of_rank[me] for of_rank in sizes)])
        for i, place in zip(numbers, places, strict=False):
            begin, end = spans[i][me]
            if begin < end:
                matrices = [matrix for some in batches[i] for matrix in some.unbind()]
                place.copy_(run(i, torch.stack(matrices[begin:end])).reshape(-1))
        came = own.new_empty(ranks * most)
        dist.all_gather_into_tensor(came, own, group=group)
        came = came.view(ranks, most)
        starts = [[0, *accumulate(of_all)] for of_all in zip(*sizes, strict=True)]
        for at, i in enumerate(numbers):
            in_order = sorted(range(ranks), key=spans[i].__getitem__)
            pieces = [came[rank, starts[rank][at] : starts[rank][at] + sizes[at][rank]] for rank in in_order]
            results[i] = torch.cat(pieces).view(-1, *batches[i][0].shape[1:])
    return [results[i] for i in range(len(batches))]
