"""Exchanges of batch and rate: what theory says they keep, they keep."""

import math

import pytest

from rightbatch.landscape.exchange import equal_jitter, equal_temperature
from rightbatch.landscape.stationary import stationary_variance


def test_equal_temperature_scatters_as_far() -> None:
    lr = equal_temperature(1e-4, 8, 64)
    before, after = (
        stationary_variance(r, 1.0, 1.0, b) for r, b in [(1e-4, 8), (lr, 64)]
    )
    assert after == pytest.approx(before, rel=1e-3)
    assert equal_jitter(1e-4, 8, 64) == pytest.approx(1e-4 * math.sqrt(8))
