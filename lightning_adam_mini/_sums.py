"""Sums over dimensions and over groups of lines, with the index tensors that the groups need kept per device."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini.lines import parse_lines

_NORM_LENGTH = 2**15
_EXPONENT = 32


class GroupIndex(NamedTuple):
    """Where the lines of a line order go. All int64 tensors on one device."""

    group_of_line: Tensor
    """Group of each line; groups are numbered in order of first appearance."""
    first_line: Tensor
    """First line of each group."""
    lengths: Tensor
    """Number of lines of each group."""
    order: Tensor | None
    """Lines sorted by group, or None where they are so already."""


@lru_cache(maxsize=1024)
def group_names(lines: str) -> tuple[tuple[str, int], ...]:
    """The ``(role, head)`` of each group of a line order, in order of first appearance."""
    return tuple(dict.fromkeys(parse_lines(lines).expand()))


@torch.compiler.assume_constant_result
def group_index(lines: str, device: torch.device) -> GroupIndex:
    """Index tensors of a line order on ``device``."""
    return _group_index(lines, device)


@lru_cache(maxsize=1024)
def _group_index(lines: str, device: torch.device) -> GroupIndex:
    number = {name: i for i, name in enumerate(group_names(lines))}
    groups = [number[name] for name in parse_lines(lines).expand()]
    with torch.inference_mode(False):  # kept for later calls, which may be outside the caller's inference mode
        of_line = torch.tensor(groups, device="cpu")  # whatever torch.set_default_device says
        order = torch.argsort(of_line, stable=True)
        lengths = torch.bincount(of_line, minlength=len(number))
        first = order[lengths.cumsum(0) - lengths]
        is_sorted = bool((of_line.diff() >= 0).all())
        return GroupIndex(of_line.to(device), first.to(device), lengths.to(device), None if is_sorted else order.to(device))


def sum_groups(values: Tensor, axis: int, lines: str) -> Tensor:
    """Sum ``values`` over the groups of lines along ``axis``; deterministic on every device, unlike ``index_add``."""
    index = group_index(lines, values.device)
    if index.order is not None:
        values = values.index_select(axis, index.order)
    sums = torch.segment_reduce(values.movedim(axis, 0).contiguous(), "sum", lengths=index.lengths, axis=0, unsafe=True)
    return sums.movedim(0, axis)


def sum_square(values: Tensor, dims: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Sum of squares over ``dims``, kept as dimensions of length 1, accumulated in ``dtype``.

    Where the innermost dimensions are summed, their norms are taken first and then added up. A norm reads the tensor once and forms no
    square; but torch accumulates one naively, so that over 10^7 float32 elements in one go it is wrong by 7e-4 (and three times
    slower on a CPU): hence norms of no more than :data:`_NORM_LENGTH` elements.
    """
    inner: list[int] = []
    for d in reversed(range(values.ndim)):
        if d not in dims or math.prod([values.shape[i] for i in (d, *inner)]) > _NORM_LENGTH:
            break
        inner.append(d)
    if not inner:
        return values.to(dtype).square().sum(dim=dims, keepdim=True) if dims else values.to(dtype).square()
    sums = torch.linalg.vector_norm(values, 2, dim=inner, keepdim=True, dtype=dtype).square_()
    outer = [d for d in dims if d not in inner]
    return sums.sum(dim=outer, keepdim=True) if outer else sums


def all_finite(means: Tensor) -> bool:
    """Whether mean squares, of which none is negative, are all finite. Said of all that cannot be looked at, or only by waiting for it."""
    if torch.compiler.is_compiling() or not means.is_cpu or means.requires_grad or not means.numel():
        return True
    return math.isfinite(float(means.max()))  # the largest is NaN if any is


def scale_down(values: Tensor) -> Tensor:
    """The values in float64, so small that no sum of up to 2^64 squares overflows where none of the squares does."""
    return values.to(torch.float64, copy=True).mul_(2.0**-_EXPONENT)


def scale_squares_up(means: Tensor) -> Tensor:
    """Undo :func:`scale_down` in a mean of squares, in place."""
    return means.mul_(2.0 ** (2 * _EXPONENT))


def second_moment_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of second moments: float32 at least, because a bfloat16 average with beta2 = 0.999 never moves."""
    return torch.promote_types(dtype, torch.float32)
