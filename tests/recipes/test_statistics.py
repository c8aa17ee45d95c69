import math

import numpy as np
import pytest

from recipes.statistics import mean_interval, median_interval


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
