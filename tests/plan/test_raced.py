"""What a race found of its settings, in time, examples or energy."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import rightbatch as rb
from cases import Truth, made_up, raced
from rightbatch.core.estimate import Estimate
from rightbatch.measure.measurements import EnergyPoint, Measurements
from rightbatch.plan.choice import choose
from rightbatch.plan.laws import laws_of
from rightbatch.plan.objectives import Objective
from rightbatch.plan.raced import Raced, raced_of

TRUTH = Truth(critical=100)
TRIED = [(16, 0.02), (16, 0.03), (64, 0.1), (32, 0.06), (16, 0.03), (256, 0.1)]
NO_LIMIT = 1e12


def metered(found: Measurements) -> Measurements:
    """A step takes 20 J and 0.01 J an example."""
    return replace(
        found,
        energy=tuple(
            EnergyPoint(
                micro_batch=b,
                joules=Estimate.median([20 + 0.01 * b] * 3, "J"),
                rounds=(20 + 0.01 * b,) * 3,
                meter="made up",
            )
            for b in (1, 16, 256)
        ),
    )


def pieces(batch_size: int) -> int:
    return -(-batch_size // 128)


def step_s(batch_size: int) -> float:
    """Of `made_up`: what updates take is paid once."""
    again = pieces(batch_size) - 1
    return 2e-3 * pieces(batch_size) + 5e-4 * batch_size - again * 2e-4


def of(found: Measurements, objective: Objective | None = None) -> Raced:
    objective = objective or rb.objectives.Time()
    standings = raced_of(found, laws_of(found), objective, NO_LIMIT)
    assert standings is not None
    return standings


def test_todays_comes_first_and_every_setting_once() -> None:
    found = of(raced(made_up(critical=100), TRUTH, TRIED))
    pairs = [(s.batch_size, s.lr) for s in found.standings]
    assert pairs == [(64, 0.1), (16, 0.02), (16, 0.03), (32, 0.06), (256, 0.1)]
    assert [s.runs for s in found.standings] == [1, 1, 2, 1, 1]
    assert found.lanes == 6
    assert found.standings[0].cost == Estimate.exact(1.0)
    assert found.log_costs.shape[1] == 5
    assert [s.micro_batch for s in found.standings] == [64, 16, 16, 32, 128]
    # Not raced itself, it is by the law.
    others = of(raced(made_up(critical=100), TRUTH, TRIED[:2]))
    assert [(s.batch_size, s.runs) for s in others.standings] == [
        *((64, 0), (16, 1)),
        (16, 1),
    ]


@pytest.mark.parametrize(
    ("objective", "unit"),
    [
        (rb.objectives.Time(), step_s),
        (rb.objectives.Money(), step_s),
        (rb.objectives.Examples(), lambda b: b),
        (rb.objectives.Energy(), lambda b: 20 * pieces(b) + 0.01 * b),
    ],
)
def test_costs_are_steps_times_those_of_a_step(
    objective: Objective, unit: Callable[[int], float]
) -> None:
    found = of(metered(raced(made_up(critical=100), TRUTH, TRIED)), objective)
    units = np.log([unit(s.batch_size) for s in found.standings])
    by_time = of(raced(made_up(critical=100), TRUTH, TRIED))
    times = [s.seconds.value for s in by_time.standings]
    steps = [
        t / step_s(s.batch_size) for t, s in zip(times, by_time.standings, strict=True)
    ]
    assert np.median(found.log_costs - units, axis=0) == pytest.approx(
        np.log(steps), abs=1e-3
    )
    today = TRUTH.steps(64, 0.1) * unit(64)
    for standing, mean in zip(found.standings, found.means, strict=True):
        steps = TRUTH.steps(standing.batch_size, standing.lr)
        expected = steps * unit(standing.batch_size)
        assert math.exp(mean) == pytest.approx(expected, rel=0.12)
        assert standing.cost.value == pytest.approx(expected / today, rel=0.12)
        assert standing.cost.low <= standing.cost.value <= standing.cost.high


def test_the_least_energy_is_taken_where_it_is_asked_for() -> None:
    """Steps are dear in energy and cheap in time."""
    found = metered(raced(made_up(critical=100), TRUTH, [*TRIED, (128, 0.11)]))
    by_energy = choose(found, rb.objectives.Energy())
    assert by_energy.chosen.batch_size >= 128
    assert choose(found).chosen.batch_size <= 64


def test_todays_is_compared_as_it_is_though_it_would_not_fit() -> None:
    found = raced(made_up(critical=100), TRUTH, TRIED)
    limit = 10_000_000 + 17 * 100_000
    tight = raced_of(found, laws_of(found), rb.objectives.Time(), limit)
    assert tight is not None
    assert [s.micro_batch for s in tight.standings] == [64, 16, 16, 16, 16]


def test_what_did_not_get_there_has_no_mean() -> None:
    wild = replace(TRUTH, edge=4.0)
    found = of(
        raced(made_up(critical=100), wild, [*TRIED, (64, 1.0), (16, 0.0001)], seconds=9)
    )
    runs = np.array([s.runs for s in found.standings])
    assert 0 < (runs > 0).sum() < len(runs)
    assert list(np.isfinite(found.means)) == list(runs > 0)
    last = {(s.batch_size, s.lr): s for s in found.standings}
    assert last[64, 1.0].diverged == 1
    assert last[16, 0.0001].diverged == 0


def test_no_race_and_a_race_that_got_nowhere_are_none() -> None:
    objective = rb.objectives.Time()
    for found in (made_up(), raced(made_up(), replace(TRUTH, edge=1e-6), TRIED)):
        assert raced_of(found, laws_of(found), objective, NO_LIMIT) is None
