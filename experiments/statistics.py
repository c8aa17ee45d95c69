"""The few statistics that the tables need."""

import math
from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean, median, quantiles, stdev
from typing import NamedTuple


class Interval(NamedTuple):
    """An estimate and its 95 % interval.

    Args:
        centre: The estimate.
        low: Lower end of the interval; nan where there are too few values for one.
        high: Upper end of the interval.
    """

    centre: float
    low: float
    high: float

    def text(self, form: str) -> str:
        """Return the estimate and its interval for people.

        Args:
            form: Format of each number, such as ``+.4f``.

        Example:
            >>> Interval(0.5, 0.25, 0.75).text("+.2f")
            '+0.50 [+0.25, +0.75]'
        """
        if not math.isfinite(self.centre):
            return "-"
        if math.isnan(self.low):
            return f"{self.centre:{form}} (too few for an interval)"
        return f"{self.centre:{form}} [{self.low:{form}}, {self.high:{form}}]"


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation; nan where there is none: of a single value, or where one is not finite (a run that diverged).

    Args:
        values: Independent values.

    Example:
        >>> deviation([1.0, 2.0, 3.0]), deviation([1.0]), deviation([1.0, math.nan])
        (1.0, nan, nan)
    """
    return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


def mean_text(mean: float, spread: float, form: str = ".4f") -> str:
    """Return a mean and its standard deviation for people.

    Args:
        mean: The mean; not finite where a run diverged.
        spread: The standard deviation; nan for a single run.
        form: Format of each.

    Example:
        >>> [mean_text(0.5, 0.1, ".2f"), mean_text(0.5, math.nan, ".2f"), mean_text(math.inf, math.nan)]
        ['0.50 ± 0.10', '0.50', 'diverged']
    """
    if not math.isfinite(mean):
        return "diverged"
    return f"{mean:{form}}" if math.isnan(spread) else f"{mean:{form}} ± {spread:{form}}"


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean and its Student-t interval.

    Args:
        values: Independent values.

    Example:
        >>> tuple(round(x, 3) for x in mean_interval([1.0, 2.0, 3.0]))
        (2.0, -0.484, 4.484)
    """
    from scipy.stats import t  # half a second to import

    centre = fmean(values)
    if len(values) < 2:
        return Interval(centre, math.nan, math.nan)
    half = float(t.ppf(0.975, len(values) - 1)) * deviation(values) / math.sqrt(len(values))
    return Interval(centre, centre - half, centre + half)


def median_interval(values: Sequence[float]) -> Interval:
    """Return the median and its 95 % interval by order statistics, which no outlier and no shape of the noise can mislead.

    Args:
        values: Independent values; there is an interval from 6 on.

    Example:
        >>> median_interval([float(x) for x in range(1, 12)])
        Interval(centre=6.0, low=2.0, high=10.0)
    """
    ordered, n = sorted(values), len(values)
    tails = accumulate(math.comb(n, k) / 2**n for k in range(n + 1))
    rank = next(k for k, tail in enumerate(tails) if tail >= 0.025)  # the widest tail that holds no more than 2.5 % is [0, rank)
    return Interval(median(ordered), ordered[rank - 1], ordered[-rank]) if rank else Interval(median(ordered), math.nan, math.nan)


def paired(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Return the median of the ratios within a round, with its 95 % interval.

    Args:
        values: One a round.
        baseline: One a round.

    Example:
        >>> paired([float(x) for x in range(1, 12)], [1.0] * 11)
        Interval(centre=6.0, low=2.0, high=10.0)
    """
    return median_interval([ours / theirs for ours, theirs in zip(values, baseline, strict=True)])


def spread(values: Sequence[float]) -> Interval:
    """Return the median and the quartiles.

    Args:
        values: At least one.

    Example:
        >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
        Interval(centre=3.0, low=2.0, high=4.0)
    """
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return Interval(median(values), low, high)
