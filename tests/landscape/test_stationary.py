"""Stationary variances: against chains, and against the plain double sum."""

import pytest

from reference import reshuffled_share, scatter_of_sgd
from rightbatch.core.errors import SettingError
from rightbatch.landscape.stationary import reshuffled_variance, stationary_variance

# 20,000 chains know a variance within 1 % (one standard deviation): 5 % is five.
CHAINS, WITHIN = 20_000, 0.05


@pytest.mark.parametrize(
    ("lr", "momentum"), [(0.1, 0.0), (1.0, 0.0), (1.9, 0.0), (0.1, 0.9), (2.5, 0.5)]
)
def test_the_variance_is_that_of_chains(lr: float, momentum: float) -> None:
    seen = scatter_of_sgd(lr, 1.0, 4, momentum, chains=CHAINS)
    right = stationary_variance(lr, 1.0, 1.0, 4, momentum)
    assert seen == pytest.approx(right, rel=WITHIN)


@pytest.mark.parametrize("rate", [3.0, 0.5, 0.05])
def test_without_momentum_reshuffling_is_the_double_sum(rate: float) -> None:
    lr, batch, examples = rate * 8 / 256, 8, 256
    right = lr**2 * reshuffled_share(1 - lr, batch, examples)
    assert reshuffled_variance(lr, 1.0, 1.0, batch, examples) == pytest.approx(right)


@pytest.mark.parametrize(("lr", "momentum"), [(0.2, 0.0), (0.1, 0.8)])
def test_reshuffled_chains_are_as_cold(lr: float, momentum: float) -> None:
    # 4,000 chains: 2.2 % (one standard deviation); 9 % is four.
    seen = scatter_of_sgd(lr, 1.0, 4, momentum, chains=4000, examples=48)
    right = reshuffled_variance(lr, 1.0, 1.0, 4, 48, momentum)
    assert seen == pytest.approx(right, rel=0.09)
    assert right < 0.7 * stationary_variance(lr, 1.0, 1.0, 4, momentum)


def test_the_full_batch_does_not_scatter() -> None:
    assert reshuffled_variance(0.1, 1.0, 1.0, 64, 64) == pytest.approx(0, abs=1e-15)


def test_beyond_the_edge_nothing_is_stationary() -> None:
    with pytest.raises(SettingError, match=r"diverges"):
        stationary_variance(0.5, 1.0, 4.0, 8)
    assert stationary_variance(0.5, 1.0, 4.0, 8, momentum=0.5) > 0
    with pytest.raises(SettingError, match=r"below 1"):
        stationary_variance(0.5, 1.0, 1.0, 8, momentum=1.0)
