"""bfloat16 weights rounded at random: up or down, with the chances that make the mean right.

A bfloat16 weight has 8 significant bits, so an update below 1/512 of it is lost in rounding to the nearest, step after step. Rounded at
random it arrives on average. Kahan summation would keep what is lost instead, but that is 2 bytes per parameter: as much as the momentum.

The random bits of an element follow from the number of the step, the parameter's number, and the element's place in the whole tensor, by a
hash. So runs repeat and resume exactly, and neither the memory format nor the way a tensor is sharded or cut into slices changes any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_MASK = 2**64 - 1


class Place(NamedTuple):
    """Where in a whole tensor the elements are that a rank holds: a rectangle, or a range of it as it lies in memory.

    Attributes:
        number: The tensor's number among all parameters of the optimizer.
        shape: Shape of the whole tensor.
        offsets: Where the rectangle begins in each dimension; empty for a range.
        sizes: Its length in each dimension; of a range, one number.
        begin: First element of the range, in the order of memory.
        order: Dimensions from the outermost in memory to the innermost, of a range.
    """

    number: int
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    begin: int = 0
    order: tuple[int, ...] | None = None

    @classmethod
    def whole(cls, number: int, shape: Sequence[int]) -> Place:
        """All of a tensor."""
        return cls(number, tuple(shape), (0,) * len(shape), tuple(shape))

    @property
    def first(self) -> int | None:
        """The index of the first element in the whole tensor, if the others follow it one by one; else None."""
        if self.order is not None:
            return self.begin if list(self.order) == sorted(self.order) else None
        partial = [d for d, (size, all_of_it) in enumerate(zip(self.sizes, self.shape, strict=True)) if size != all_of_it]
        if partial and any(size != 1 for size in self.sizes[: partial[-1]]):
            return None
        return sum(offset * math.prod(self.shape[d + 1 :]) for d, offset in enumerate(self.offsets))

    def indices(self, lines: slice, device: torch.device) -> Tensor:
        """The index of each element in the whole tensor.

        Args:
            lines: Which lines of the first dimension.
            device: Where the result goes.

        Returns:
            An int64 tensor of the shape of these lines.

        Example:
            >>> Place(0, (4, 6), (2, 3), (2, 2)).indices(slice(0, 2), torch.device("cpu")).tolist()
            [[15, 16], [21, 22]]
        """
        sizes = (len(range(*lines.indices(self.sizes[0]))), *self.sizes[1:]) if self.sizes else (1,)
        first = self.first
        if first is not None:
            begin = first + lines.start * math.prod(self.sizes[1:])
            return torch.arange(begin, begin + math.prod(sizes), device=device).view(sizes)
        strides = [math.prod(self.shape[d + 1 :]) for d in range(len(self.shape))]
        total = torch.zeros((), dtype=torch.int64, device=device)
        if self.order is None:
            for d, (offset, size) in enumerate(zip(self.offsets, sizes, strict=True)):
                offset += lines.start if d == 0 else 0
                line = torch.arange(offset, offset + size, device=device) * strides[d]
                total = total + line.view([-1 if i == d else 1 for i in range(len(sizes))])
            return total
        rest = torch.arange(self.begin + lines.start, self.begin + lines.start + sizes[0], device=device)
        for d in reversed(self.order):
            total = total + rest % self.shape[d] * strides[d]
            rest = rest // self.shape[d]
        return total


def seed_of(step: int, number: int) -> int:
    """64 bits that differ for all steps and parameters in all their places (the finaliser of SplitMix64)."""
    x = (step * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def round_at_random(values: Tensor, indices: Tensor, seed: int) -> Tensor:
    """Round float32 to numbers that bfloat16 has, away from zero with the chance that makes the mean right.

    Args:
        values: float32.
        indices: int64 index of each element in the whole tensor.
        seed: What :func:`seed_of` gave.

    Returns:
        A float32 tensor. Infinities and NaNs stay what they are.
    """
    # The upper half of a float32 is a bfloat16: what a random number below 1 of its units carries over is the rounding.
    rounded = _random_bits(indices, seed).add_(values.view(torch.int32)).bitwise_and_(-0x10000).view(torch.float32)
    return torch.where(values.isnan(), values, rounded)  # whose bits may be all ones, and overflow


def _random_bits(indices: Tensor, seed: int) -> Tensor:
    """16 random bits per index, in int32; the same hash as in ``kernel.cpp``."""
    low, high = seed & 0xFFFFFFFF, seed >> 32
    x = indices.to(torch.int32).bitwise_xor_(_signed(low))
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).add_(_signed(high))
    x.add_((indices >> 32).to(torch.int32).mul_(_signed(0x9E3779B1)))
    x.mul_(_signed(0x846CA68B))
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    return (x >> 16).bitwise_and_(0xFFFF)


def _signed(word: int) -> int:
    """32 bits as a signed number."""
    return word - 2**32 if word >= 2**31 else word
