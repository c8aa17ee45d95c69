"""One step of Algorithm 1 (arXiv 2406.16793) in float64 NumPy, and how far from it a step in fewer digits may end.

Shares no code with the package: the block of an element is worked out from its index.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch


def block_numbers(shape, kept, axis=None, lines=None):
    """The number of each element's block.

    Args:
        shape: Shape of the tensor.
        kept: Dimensions that are not averaged over; blocks are counted in their order, the last one fastest.
        axis: The one of them whose lines are grouped.
        lines: A label for each of its lines; groups are counted in the order in which their labels come.
    """
    numbers = np.zeros(shape, dtype=np.int64)
    for d in sorted(kept):
        places = np.arange(shape[d])
        if d == axis:
            place = {label: i for i, label in enumerate(dict.fromkeys(lines))}
            places = np.array([place[label] for label in lines])
        numbers = numbers * (places.max(initial=-1) + 1) + places.reshape([-1 if i == d else 1 for i in range(len(shape))])
    return numbers


def labels(text):
    """Labels of lines from how often each comes.

    Example:
        >>> labels("a2 b1 a1")
        ['a', 'a', 'b', 'a']
    """
    return [word[0] for word in text.split() for _ in range(int(word[1:]))]


class Margins(NamedTuple):
    """The numbers of each element's blocks where rows and columns cross.

    Attributes:
        first: In the first margin.
        second: In the second, whose blocks are counted after those of the first.
        both: In what both average to.
    """

    first: np.ndarray
    second: np.ndarray
    both: np.ndarray


def crossed(first, second, both):
    """Numbers of :func:`block_numbers` of two margins, and of what both average to."""
    return Margins(first, second + first.max(initial=-1) + 1, both)


class Moments(NamedTuple):
    """Weights, first moments and second moments: the latter one a block, those of the first margin first."""

    p: Any
    m: Any
    v: Any


def at_start(p, numbers):
    """Weights that have not been stepped."""
    p = np.array(p, dtype=np.float64)
    last = numbers.second if isinstance(numbers, Margins) else numbers
    return Moments(p, np.zeros_like(p), np.zeros(last.max(initial=-1) + 1))


def _mean(values, numbers):
    if isinstance(numbers, Margins):
        second = numbers.second - numbers.first.max(initial=-1) - 1
        return np.concatenate([_mean(values, numbers.first), _mean(values, second)])
    return np.bincount(numbers.ravel(), values.ravel()) / np.bincount(numbers.ravel())


def spread(v, numbers):
    """The second moment of each element: where two means cross, the first times the second over the mean of both."""
    if not isinstance(numbers, Margins):
        return v[numbers]
    first, second = v[numbers.first], v[numbers.second]
    both = _mean(second, numbers.both)[numbers.both]
    with np.errstate(all="ignore"):
        return np.where(both == 0, 0, first / both) * second


def largest_update(beta1, beta2):
    """Adam's own bound of an update, in learning rates, which updates by crossed means keep to."""
    return max(1.0, (1 - beta1) / np.sqrt(1 - beta2))


def one_step(before, g, t, numbers, options):
    """A step.

    Args:
        before: :class:`Moments` in float64.
        g: Gradients.
        t: Number of the step, from 1 on.
        numbers: Of :func:`block_numbers`, or :class:`Margins`.
        options: Those of the optimizer, all of them.
    """
    (p, m, v), (beta1, beta2), lr, decay = before, options["betas"], float(options["lr"]), options["weight_decay"]
    g = -g if options["maximize"] else g
    with np.errstate(all="ignore"):
        if options["decoupled_weight_decay"]:
            p = p * (1 - lr * decay)
        elif decay:
            g = g + decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * _mean(g * g, numbers)
        update = m / (1 - beta1**t) / (np.sqrt(spread(v, numbers) / (1 - beta2**t)) + options["eps"])
        if isinstance(numbers, Margins):
            update = np.clip(update, -largest_update(beta1, beta2), largest_update(beta1, beta2))
        p = p - lr * update
    return Moments(p, m, v)


def bounds(before, g, t, numbers, options, dtype, momentum_dtype, roundings=1):
    """How far each number may be from what :func:`one_step` says.

    Args:
        before: As for :func:`one_step`, and so on.
        dtype: Of the weights.
        momentum_dtype: Of the first moments; float32 stands for the dtype of the arithmetic, and codes.
        roundings: How often a step rounds weights to their dtype; if twice, gradients to which decay is added are rounded to it too.
    """
    (p, m, v), (beta1, beta2), lr, decay = before, options["betas"], float(options["lr"]), options["weight_decay"]
    unit = _unit(torch.float64 if dtype == torch.float64 else torch.float32)
    decoupled = options["decoupled_weight_decay"] or not decay
    size_g = np.abs(g) + (0 if decoupled else decay * np.abs(p))
    in_g = 3 * _unit(dtype) if roundings > 1 and not decoupled and dtype.itemsize == 2 else 0  # of decay, its product and the sum
    size_m = beta1 * np.abs(m) + (1 - beta1) * size_g
    bound_m = (8 * unit + in_g) * size_m + 2 * _rounding(size_m, momentum_dtype, unit)
    margins = numbers[:2] if isinstance(numbers, Margins) else (numbers,)
    longest = max(np.bincount(margin.ravel()).max(initial=1) for margin in margins)
    in_mean = min(unit * (16 + longest), 1e-4) + 2 * in_g
    bound_v = in_mean * (beta2 * v + (1 - beta2) * _mean(size_g * size_g, numbers))
    after = one_step(before, g, t, numbers, options)
    with np.errstate(all="ignore"):
        correction, rate = 1 - beta2**t, lr / (1 - beta1**t)
        if isinstance(numbers, Margins):
            relative = np.where(after.v > 0, bound_v / after.v, 0)
            off = relative[numbers.first] + 2 * relative[numbers.second].max(initial=0) + 16 * unit  # of a product and a mean
            low, high = (spread(after.v, numbers) * np.maximum(1 + sign * off, 0) for sign in (-1, 1))
        else:
            low, high = np.maximum(after.v - bound_v, 0)[numbers], (after.v + bound_v)[numbers]
        least, most = (np.sqrt(value / correction) + options["eps"] for value in (low, high))
        size_p = np.abs(p) + rate * size_m / least
        by_moments = rate * (bound_m / least + np.abs(after.m) * (1 / least - 1 / most))
        bound_p = 16 * unit * size_p + 1.02 * roundings * _rounding(size_p, dtype, unit) + by_moments
    return Moments(bound_p, bound_m, bound_v)


# ---- codes


def row_by_hand(shape):
    """Elements of a row: of the last dimensions, until there are 64, or of the whole tensor where these would be fewer than 8."""
    row, d = 1, len(shape)
    while d > 1 and row < 64:
        d -= 1
        row *= shape[d]
    return row if len(shape) > 1 and row >= 8 else int(np.prod(shape))


def run_lengths(numel, row, lead=0):
    """Elements of the runs that have a scale each: 256 at most, and runs end where rows do."""
    ends = [min(lead, numel), *range(lead + row, numel, row), numel] if row else []
    return [min(256, end - i) for begin, end in zip([0, *ends[:-1]], ends, strict=True) for i in range(begin, end, 256)]


def decoded(codes, scales, lengths):
    """What codes stand for."""
    flat = np.asarray(codes, dtype=np.float64).ravel()
    values = np.sign(flat) * (flat / 127) ** 2 * np.repeat(np.asarray(scales, dtype=np.float64).ravel(), lengths)
    return values.reshape(np.shape(codes))


def wrong_codes(m, bound, codes, scales, lengths):
    """Which of the codes of moments are more than half a step off, where a moment itself may be off by a bound; all as arrays."""
    m, bound, codes, scales = (np.asarray(a, dtype=np.float64).ravel() for a in (m, bound, codes, scales))
    if not len(m):
        return np.zeros(0, dtype=bool)
    starts = np.cumsum(lengths) - lengths
    with np.errstate(all="ignore"):
        largest, margin = np.maximum.reduceat(np.abs(m), starts), np.maximum.reduceat(bound, starts)
        zero = scales == 0
        wrong_scale = np.where(zero, largest - margin > 2.0**-99, np.abs(scales - largest) > margin + 1e-6 * largest)
        wrong_scale = np.where(np.isfinite(largest), wrong_scale, np.isfinite(scales))
        scale = np.repeat(np.where(zero, np.inf, scales), lengths)
        low = 127 * np.sqrt(np.maximum(np.abs(m) - bound, 0) / scale)
        high = 127 * np.sqrt((np.abs(m) + bound) / scale)
        wrong = (np.abs(codes) < low - 0.501) | (np.abs(codes) > high + 0.501) | ((codes * m < 0) & (np.abs(m) > bound))
    known = np.repeat(np.isfinite(largest), lengths)
    return (wrong & known) | np.repeat(wrong_scale, lengths)


def _unit(dtype):
    """Half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def _rounding(size, dtype, unit):
    """What rounding to a dtype may change of numbers of some size."""
    return size * _unit(dtype) + torch.finfo(dtype).smallest_normal * _unit(dtype) if _unit(dtype) > unit else 0 * size
