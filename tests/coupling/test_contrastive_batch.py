"""The optimum against a search of every batch."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb
from rightbatch.coupling.contrastive_batch import StepCost, optimal_contrastive_batch
from rightbatch.coupling.pairwise_noise import PairNoise


def known(v1: float, v2: float) -> PairNoise:
    """Noise without doubt."""
    exact = rb.Estimate.exact
    return PairNoise(
        v1=exact(v1),
        v2=exact(v2),
        signal=exact(1.0),
        sizes=(8, 64),
        relative=(),
        draws=np.array([[v1, v2]]),
    )


def total(b: np.ndarray, v1: float, v2: float, cost: StepCost) -> np.ndarray:
    """Cost to the result."""
    step = cost.fixed + cost.linear * b + cost.quadratic * b**2
    return step * (1 + v1 / b + v2 / (b * (b - 1)))


positive = st.floats(1e-3, 1e3)
quadratics = st.just(0.0) | st.floats(1e-9, 1.0)


@settings(max_examples=100, deadline=None)
@given(st.floats(0.1, 1e4), st.floats(0, 1e6), positive, positive, quadratics)
def test_no_batch_of_a_fine_search_costs_less(
    v1: float, v2: float, fixed: float, linear: float, quadratic: float
) -> None:
    cost = StepCost(fixed=fixed, linear=linear, quadratic=quadratic)
    best = optimal_contrastive_batch(known(v1, v2), cost, most=1e6).batch_size.value
    every = np.geomspace(2, 1e6, 4_001)
    least = total(every, v1, v2, cost).min()
    assert total(np.array(best), v1, v2, cost) <= least * (1 + 1e-6)


@pytest.mark.parametrize(
    ("v1", "v2", "costs", "best"),
    [
        (26.0, 668.0, (0.0, 1.0, 0.001), 26),
        (26.0, 668.0, (0.0, 1.0, 0.02), 18),
        (26.0, 668.0, (50.0, 1.0, 0.005), 47),
        (1.0, 0.1, (0.1, 1.0, 1.0), 2),
    ],
)
def test_known_cases(
    v1: float, v2: float, costs: tuple[float, float, float], best: int
) -> None:
    cost = StepCost(fixed=costs[0], linear=costs[1], quadratic=costs[2])
    value = optimal_contrastive_batch(known(v1, v2), cost).batch_size.value
    assert value == pytest.approx(best, rel=0.03)


def test_a_least_value_in_between_is_not_lost() -> None:
    """The polynomial whose root it is has coefficients 28 powers of ten apart."""
    cost = StepCost(fixed=0.0561559, linear=0.0, quadratic=1.4187e-14)
    best = optimal_contrastive_batch(known(0.0, 9.152558e8), cost, most=888_071)
    assert best.batch_size.value == pytest.approx(245_000, rel=0.01)


def test_where_noise_is_nearly_all_the_rule_of_thumb_holds() -> None:
    cost = StepCost(fixed=100.0, linear=0.01, quadratic=0.001)
    value = optimal_contrastive_batch(known(1e7, 1e8), cost).batch_size.value
    thumb = math.sqrt(100.0 / 0.001 + 0.01 / 0.001 * 1e8 / 1e7)
    assert value == pytest.approx(thumb, rel=0.05)


def test_no_batch_is_too_large_where_nothing_stops_it() -> None:
    free = StepCost(fixed=1.0, linear=0.0)
    assert optimal_contrastive_batch(known(100, 0), free).limited
    held = optimal_contrastive_batch(known(100, 0), free, most=512)
    assert held.batch_size.value == 512
    assert held.limited
    assert held.relative(256) > 1
    assert "what memory holds" in str(optimal_contrastive_batch(known(9, 9), free))
    assert optimal_contrastive_batch(known(100, 0), free).relative(50) == 3
    blind = known(math.inf, math.inf)
    assert optimal_contrastive_batch(blind, free, most=64).batch_size.value == 64


def test_the_interval_is_that_of_the_draws() -> None:
    noise = known(100.0, 0.0)
    wide = PairNoise(
        v1=noise.v1,
        v2=noise.v2,
        signal=noise.signal,
        sizes=(8, 64),
        relative=(),
        draws=np.array([[v1, 0.0] for v1 in np.linspace(25, 400, 100)]),
    )
    cost = StepCost(fixed=1.0, linear=0.01)
    best = optimal_contrastive_batch(wide, cost).batch_size
    assert best.value == pytest.approx(100, rel=0.02)  # sqrt(V1 c0 / c1)
    assert best.low == pytest.approx(54, rel=0.1)
    assert best.high == pytest.approx(198, rel=0.1)


@given(st.floats(0, 10), st.floats(0, 1), st.floats(1e-6, 1e-2))
def test_a_cost_is_found_again(fixed: float, linear: float, quadratic: float) -> None:
    cost = StepCost(fixed=fixed, linear=linear, quadratic=quadratic)
    sizes = [8, 32, 128, 512, 1024]
    again = StepCost.fit(sizes, [cost.of(b) for b in sizes])
    for b in (16, 64, 700):
        assert again.of(b) == pytest.approx(cost.of(b), rel=1e-3)


def test_costs_that_are_none_are_refused() -> None:
    with pytest.raises(rb.SettingError, match="three sizes"):
        StepCost.fit([8, 16], [1.0, 2.0])
    with pytest.raises(rb.SettingError, match="not negative"):
        StepCost(fixed=-1.0, linear=1.0)
    with pytest.raises(rb.SettingError, match="nothing to compare"):
        optimal_contrastive_batch(known(1, 1), StepCost(fixed=1.0, linear=1.0), most=1)
