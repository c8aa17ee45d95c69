import math

import numpy as np
import pytest
from scipy.stats import binom

from experiments.statistics import mean_interval, median_interval


@pytest.mark.parametrize("interval", [mean_interval, median_interval])
@pytest.mark.parametrize("size", [6, 15, 20])
def test_interval_covers_the_truth_in_at_least_95_of_100(interval, size):
    samples = np.random.default_rng(0).normal(3.0, 2.0, size=(2000, size))
    covered = np.mean([low <= 3.0 <= high for _, low, high in map(interval, samples.tolist())])
    assert covered >= 0.94


@pytest.mark.parametrize("interval", [mean_interval, median_interval])
def test_one_value_has_no_interval(interval):
    centre, low, high = interval([2.0])
    assert centre == 2.0
    assert math.isnan(low)
    assert math.isnan(high)


def test_the_median_interval_is_that_of_the_binomial_distribution():
    for n in range(1, 80):
        values = sorted(np.random.default_rng(n).normal(size=n).tolist())
        rank = int(binom.ppf(0.025, n, 0.5))
        assert median_interval(values)[1:] == (
            (values[rank - 1], values[-rank]) if rank else pytest.approx((math.nan, math.nan), nan_ok=True)
        )
