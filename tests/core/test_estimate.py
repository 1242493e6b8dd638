"""Intervals hold their value and are honest."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch.core.estimate import Estimate

finite = st.floats(-1e12, 1e12)


@given(finite, finite, finite, finite)
def test_scaling_keeps_the_value_inside(a: float, b: float, c: float, f: float) -> None:
    low, value, high = sorted((a, b, c))
    scaled = Estimate(value=value, low=low, high=high).scale(f)
    assert scaled.low <= scaled.value <= scaled.high


def test_a_value_outside_its_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="does not hold"):
        Estimate(value=3.0, low=1.0, high=2.0)


def test_median_interval_covers() -> None:
    # 2,000 samples of 15 log-normal draws: the median 1 is held in 95 % of them. The
    # order statistics give at least the nominal rate up to rounding of the rank.
    random = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        e = Estimate.median(list(np.exp(random.normal(size=15))), "")
        held += e.low <= 1 <= e.high
    assert 0.93 <= held / 2000 <= 0.995


def test_draws_with_infinities_are_unbounded() -> None:
    e = Estimate.from_draws(1.0, [0.5] * 50 + [math.inf] * 50, unit="", n=2, method="")
    assert (e.low, e.high, e.bounded) == (0.5, math.inf, False)
