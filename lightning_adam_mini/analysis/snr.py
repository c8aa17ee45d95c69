"""The signal-to-noise ratio of second moments: whether one value can stand for all that a block averages.

SlimAdam (Kalra et al., "When Can You Get Away with Low Memory Adam?", 2025) asks of a second moment V and the dimensions K that are to be
averaged:

    SNR_K(V) = E_K'[ (E_K[V])² / Var_K[V] ]

K' being the other dimensions and the variance that of the population. Above about 1 the mean speaks for all. Here K is a
:class:`~lightning_adam_mini.BlockLayout`, so that heads can be asked about as well: the ratio of each block, averaged over blocks.

Of a *factored* layout the estimate of an element is no mean but the product of two, and the ratio is what that says of it,
``sum(estimate²) / sum((V - estimate)²)`` over each block of the first mean. With the mean for an estimate that is the ratio above.

- A block that is constant has an infinite ratio. It loses nothing by being averaged, so the blocks that vary decide; where none varies, the
  ratio is infinite.
- A block of zeros only (a token that has not been seen) has none, and is left out; where all are zero, the ratio is nan: nothing is known.
- Ratios above 1e12 count as infinite, because sums in float64 cannot tell them from it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout, cross

_INFINITE = 1e12
_SHORT = 16
_SLICE = 2**15
"""Elements that a CPU sums at a time: they stay in cache, and are as many as torch sums without waiting for other threads."""
_PART, _PART_WITH_KERNELS, _PART_ELSEWHERE = 2**21, 2**18, 2**24
"""Elements whose moments are held at a time: fewer where they are many, as over one side of a kernel."""


def subset_layouts(shape: Sequence[int]) -> list[BlockLayout]:
    """The averages over every subset of a tensor's dimensions, the smallest subsets first.

    Dimensions of length 1 are in none of them, because averaging over them changes nothing.

    Args:
        shape: The tensor's shape.

    Example:
        >>> [layout.dims for layout in subset_layouts((8, 4, 1))]
        [(0,), (1,), (0, 1)]
    """
    dims = [d for d, size in enumerate(shape) if size > 1]
    return [BlockLayout(tuple(shape), subset) for n in range(1, len(dims) + 1) for subset in itertools.combinations(dims, n)]


@torch.no_grad()
def measure_snr(second_moment: Tensor, layouts: Sequence[BlockLayout] | None = None) -> Tensor:
    """The signal-to-noise ratio of a second moment within the blocks of each layout, averaged over blocks.

    The tensor is read once (for each factored layout twice more), in slices, and summed in float64: a float32 second moment of any
    size (1e-30 is usual early on) gives what float64 would. Nothing waits for the device.

    Args:
        second_moment: Adam's, one value per parameter: any floating dtype, device and strides.
        layouts: Blocks to measure. [default: :func:`subset_layouts`]

    Returns:
        float64 tensor with one ratio a layout, on the device of ``second_moment``. What is constant and what is zero, the top of this
        module says.

    Raises:
        ValueError: If a layout is for another shape, averages over nothing, or is factored with heads.

    Example:
        >>> rows = torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.0, 0.0]])  # one that varies, one constant, one of zeros
        >>> measure_snr(rows, [BlockLayout((3, 2), dims=(1,))]).tolist()
        [4.0]
    """
    v = second_moment
    layouts = subset_layouts(v.shape) if layouts is None else layouts
    for layout in layouts:
        if layout.shape != tuple(v.shape):
            raise ValueError(
                f"A layout for shape {layout.shape} cannot be measured on a second moment of shape {tuple(v.shape)}, because second"
                " moments that are measured have one value per parameter. Measure during a run with Adam or AdamW."
            )
        if layout.is_per_parameter:
            raise ValueError(f"The layout {layout!r} averages over nothing, so it has no signal-to-noise ratio. Leave it out.")
        if layout.is_factored and layout.lines is not None:
            raise ValueError(f"The layout {layout!r} cannot be measured, because it crosses the means of heads. Measure that of lines.")
    if v.device.type == "mps":  # which has no float64
        v = v.cpu()
    if v.dtype == torch.float64 and v.numel():
        v = v / v.amax().clamp_min(torch.finfo(v.dtype).tiny)  # so that squares do not underflow
    if not layouts or v.numel() == 0:
        return torch.full((len(layouts),), math.nan, dtype=torch.float64, device=v.device)
    size = _PART_WITH_KERNELS if any(1 < length <= _SHORT for length in v.shape[1:]) else _PART
    parts = v.split(max(1, (size if v.device.type == "cpu" else _PART_ELSEWHERE) // math.prod(v.shape[1:])))
    of_means = [layout for layout in layouts if not layout.is_factored]
    found = [_measure_part(part, of_means) for part in parts]
    first = torch.stack([part.first for part in found]).sum(0) if 0 in _all_dims(of_means) else None
    whole = _Moments(v.shape, {} if first is None else {(0,): _mean_and_variance(first[0], first[1], v.shape[0])})
    ratios = []
    for layout in layouts:
        if layout.is_factored:
            tally = _tally(*_estimate_and_error(v, layout))
        elif 0 in layout.dims:
            tally = _tally(*_group(*whole(layout.dims), layout))
        elif layout.axis == 0:
            mean, variance = (torch.cat([part.lines[layout][i] for part in found]) for i in (0, 1))
            tally = _tally(*_group(mean, variance, layout))
        else:
            tally = torch.stack([part.tallies[layout] for part in found]).sum(0)
        total, varying, constant = tally
        ratios.append(torch.where(varying > 0, total / varying, torch.where(constant > 0, math.inf, math.nan)))
    return torch.stack(ratios)


def _tally(mean: Tensor, variance: Tensor) -> Tensor:
    """The sum of the ratios of blocks that vary, their number, and the number of blocks that are constant but not zero."""
    ratios = mean.square().div_(variance.clamp_min(0.0))  # nan for zeros, and for what is not finite
    varies = ratios < _INFINITE
    total = torch.where(varies, ratios, 0.0).sum()
    return torch.stack([total, varies.count_nonzero().double(), (ratios >= _INFINITE).count_nonzero().double()])


def _estimate_and_error(v: Tensor, layout: BlockLayout) -> tuple[Tensor, Tensor]:
    """Root of the sum of squares of a factored layout's estimate, and sum of those of its errors, in each block of the first margin."""
    count, rest = len(v), v.shape[1:]
    length = min(count, max(1, (_SLICE if v.device.type == "cpu" else _PART_ELSEWHERE) // math.prod(rest)))
    buffer = v.new_empty((length, *rest), dtype=torch.float64)

    def parts(*beside: Tensor) -> Iterator[tuple[Tensor, ...]]:
        for start in range(0, count, length):
            here = min(length, count - start)
            yield buffer[:here].copy_(v[start : start + here]), *(x if len(x) == 1 else x[start : start + here] for x in beside)

    def whole(sums: Iterable[Tensor], dims: tuple[int, ...]) -> Tensor:
        sums = list(sums)
        return torch.stack(sums).sum(0) if 0 in dims else torch.cat(sums)

    both = [margin.dims for margin in layout.margins]
    sums = [[part.sum(dims, keepdim=True) for dims in both] for (part,) in parts()]
    means = [whole(some, dims) / math.prod(v.shape[d] for d in dims) for some, dims in zip(zip(*sums, strict=True), both, strict=True)]
    rows, columns = cross(layout.margins, means)
    errors = (part.addcmul_(r, c, value=-1).square_().sum(layout.dims, keepdim=True) for part, r, c in parts(rows, columns))
    squares = columns.square().expand([size if d in layout.dims else columns.shape[d] for d, size in enumerate(v.shape)])
    return rows * squares.sum(layout.dims, keepdim=True).sqrt(), whole(errors, layout.dims)


def _group(mean: Tensor, variance: Tensor, layout: BlockLayout) -> tuple[Tensor, Tensor]:
    """Moments of groups of lines from those of the lines."""
    if layout.axis is None or layout.lines is None:
        return mean, variance
    groups = BlockLayout(tuple(mean.shape), (), layout.axis, layout.lines)
    whole = groups.average(mean)
    return whole, groups.average(variance) + groups.average((mean - groups.spread(whole)).square())


def _all_dims(layouts: Iterable[BlockLayout]) -> set[int]:
    return {d for layout in layouts for d in layout.dims}


class _Part(NamedTuple):
    """What is found in some of the rows."""

    first: Tensor
    """Sums of v and of v² over the first dimension."""
    lines: dict[BlockLayout, tuple[Tensor, Tensor]]
    """Mean and variance of each line along the first dimension, for the layouts that group these."""
    tallies: dict[BlockLayout, Tensor]
    """For the layouts whose blocks lie within a row."""


@torch.no_grad()
def _measure_part(v: Tensor, layouts: Sequence[BlockLayout]) -> _Part:
    here = [layout for layout in layouts if 0 not in layout.dims]
    moments = _Moments(v.shape)
    sums = _sums(v, {d for layout in here for d in moments.singles(layout.dims)} | ({0} & _all_dims(layouts)))
    moments.known.update({(d,): _mean_and_variance(total, squares, v.shape[d]) for d, (total, squares) in sums.items() if d})
    lines = {layout: moments(layout.dims) for layout in here if layout.axis == 0}
    tallies = {layout: _tally(*_group(*moments(layout.dims), layout)) for layout in here if layout.axis != 0}
    return _Part(torch.stack(sums[0]) if 0 in sums else v.new_empty(0), lines, tallies)


def _mean_and_variance(total: Tensor, squares: Tensor, count: int) -> tuple[Tensor, Tensor]:
    mean = total.div_(count)
    return mean, squares.div_(count).sub_(mean.square())


class _Moments:
    """Mean and variance over sets of dimensions, which stay as dimensions of length 1: of larger sets by the law of total variance."""

    def __init__(self, shape: Sequence[int], known: dict[tuple[int, ...], tuple[Tensor, Tensor]] | None = None) -> None:
        self._shape = shape
        self.known = known or {}

    def singles(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        """The single dimension whose moments those of ``dims`` follow from."""
        return dims if len(dims) < 2 else self.singles(self._smaller(dims)[0])

    def _smaller(self, dims: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """All but the shortest of the dimensions, and that one. The first always stays: its moments are those of all parts."""
        shortest = min((d for d in dims if d), key=lambda d: self._shape[d])
        return tuple(d for d in dims if d != shortest), shortest

    def __call__(self, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        if dims not in self.known:
            smaller, d = self._smaller(dims)
            mean, variance = self(smaller)
            whole = mean.mean(d, keepdim=True)
            self.known[dims] = whole, variance.mean(d, keepdim=True) + (mean - whole).square_().mean(d, keepdim=True)
        return self.known[dims]


def _sums(v: Tensor, dims: Collection[int]) -> dict[int, tuple[Tensor, Tensor]]:
    """Sums of v and of v² over each single dimension, kept as a dimension of length 1; in float64, reading v once."""
    # The sides of a convolution's kernel go first: torch sums three elements in a row fifty times slower than three far apart.
    order = sorted(range(v.ndim), key=lambda d: d == 0 or v.shape[d] > _SHORT)
    rows = order.index(0)
    v = v.permute(order)
    shapes = {d: [1 if order[i] == d else size for i, size in enumerate(v.shape)] for d in dims}
    out = {d: [v.new_zeros(shape, dtype=torch.float64) for _ in range(2)] for d, shape in shapes.items()}
    count = v.shape[rows]
    length = min(count, max(1, _SLICE * count // v.numel())) if v.device.type == "cpu" else count
    buffer = v.new_empty([length if i == rows else size for i, size in enumerate(v.shape)], dtype=torch.float64)
    for start in range(0, count, length):
        here = min(length, count - start)
        powers = buffer.narrow(rows, 0, here).copy_(v.narrow(rows, start, here))
        for i in (0, 1):
            if i == 1:
                powers.square_()
            for d, sums in out.items():
                part = sums[i] if d == 0 else sums[i].narrow(rows, start, here)
                part.add_(powers.sum(order.index(d), keepdim=True))
    back = [order.index(d) for d in range(v.ndim)]
    return {d: (sums[0].permute(back), sums[1].permute(back)) for d, sums in out.items()}
