"""What an exchange of batch and rate holds constant: theory's table."""

import math

import pytest

from rightbatch.landscape.exchange import equal_jitter, equal_temperature, held_constant
from rightbatch.landscape.stationary import stationary_variance


@pytest.mark.parametrize(
    ("lr_factor", "factors"),
    [
        (9, (1, 9, 1, 1, 9)),
        (3, (1 / 3, 1, 1 / 3, 1 / 9, 3)),
        (1, (1 / 9, 1 / 9, 1 / 9, 1 / 81, 1)),
    ],
)
def test_nine_times_the_batch(lr_factor: float, factors: tuple[float, ...]) -> None:
    found = held_constant(9, lr_factor)
    seen = (
        found.temperature,
        found.update_variance,
        found.drift_per_epoch,
        found.noise_per_epoch,
        found.stability,
    )
    assert seen == pytest.approx(factors)


def test_equal_temperature_scatters_as_far() -> None:
    lr = equal_temperature(1e-4, 8, 64)
    before, after = (
        stationary_variance(r, 1.0, 1.0, b) for r, b in [(1e-4, 8), (lr, 64)]
    )
    assert after == pytest.approx(before, rel=1e-3)
    assert equal_jitter(1e-4, 8, 64) == pytest.approx(1e-4 * math.sqrt(8))
