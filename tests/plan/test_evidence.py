"""Evidence: what share of a run was raced, and what is left of it."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import TARGET, Truth, a_race, made_up, raced, ran_to_target
from rightbatch.measure.measurements import Lane, Race
from rightbatch.plan.evidence import (
    LEAST_SHARE,
    MOST_DOUBLINGS,
    PASSES,
    SHARES,
    SHORTFALL,
    Evidence,
    doublings_left,
    evidence_of,
)
from rightbatch.plan.laws import laws_of


def race_of(metrics: list[float], target: float | None, goal: str = "min") -> Race:
    """One lane, evaluated at every step of a second."""
    lane = Lane(
        batch_size=8,
        micro_batch=8,
        lr=0.1,
        seed=0,
        step_s=1.0,
        steps=tuple(range(1, len(metrics) + 1)),
        metrics=tuple(metrics),
        end="time",
    )
    empty = a_race(Truth(), [(64, 0.1)])
    return replace(empty, lanes=(lane,), target=target, goal=goal, start=2 * metrics[0])


@settings(max_examples=50, deadline=None)
@given(st.floats(0.05, 1.5), st.floats(0, 5), st.floats(0.1, 8))
def test_a_power_of_time_is_followed_exactly(
    power: float, floor: float, doublings: float
) -> None:
    curve = [floor + t**-power for t in range(1, 65)]
    target = floor + (64 * 2**doublings) ** -power
    race = race_of(curve, target)
    assert doublings_left(race, 64.0) == pytest.approx(doublings, rel=1e-6)
    turned = race_of([-value for value in curve], -target, goal="max")
    assert doublings_left(turned, 64.0) == pytest.approx(doublings, rel=1e-6)


def test_a_logarithm_of_time_gains_as_much_at_every_doubling() -> None:
    curve = [10 - math.log2(t) for t in range(1, 65)]
    assert doublings_left(race_of(curve, 1.0), 64.0) == pytest.approx(3.0)


def test_an_exponential_is_not_taken_for_farther_than_it_is() -> None:
    """It gains less at every doubling than the trend says, and comes to an end."""
    curve = [math.exp(-t / 20) for t in range(1, 65)]
    true = math.log2(-20 * math.log(0.01) / 64)
    assert 0.3 * true < doublings_left(race_of(curve, 0.01), 64.0) <= true
    assert doublings_left(race_of(curve, -0.5), 64.0) == math.inf


def test_what_speeds_up_is_not_taken_to_go_on_so() -> None:
    line = [100.0 - t for t in range(1, 65)]
    # The last doubling gained the 32 that are left; the next is taken to, no more.
    assert doublings_left(race_of(line, 4.0), 64.0) == pytest.approx(1.0)


@pytest.mark.parametrize("values", [[5.0] * 64, [*([5.0] * 40), *([4.0] * 24)]])
def test_where_nothing_is_gained_no_end_is_seen(values: list[float]) -> None:
    assert doublings_left(race_of(values, 1.0), 64.0) == math.inf
    assert doublings_left(race_of(values, 6.0), 64.0) == 0.0


def test_laws_only() -> None:
    """The run is then some passes over the data, as many as the job says, or known."""
    found = made_up()
    evidence = evidence_of(found, laws_of(found))
    example_s = (2e-3 + 64 * 5e-4) / 64
    assert evidence.grade == "laws only"
    assert evidence.share == 0.0
    assert not evidence.enough
    assert not evidence.known
    assert evidence.run_s == pytest.approx(PASSES * 100_000 * example_s, rel=0.02)
    told = replace(found, job=replace(found.job, run_examples=64_000.0))
    evidence = evidence_of(told, laws_of(told))
    assert evidence.known
    assert evidence.run_s == pytest.approx(64_000 * example_s, rel=0.02)
    reached = ran_to_target(500)
    evidence = evidence_of(reached, laws_of(reached))
    assert evidence.known
    assert evidence.run_s == pytest.approx(500 * 64 * example_s, rel=0.02)
    assert evidence.grade == "laws only"


def test_raced_to_the_target() -> None:
    truth, tried = Truth(critical=100), [(64, 0.1), (16, 0.03), (32, 0.05)]
    found = raced(made_up(critical=100), truth, tried)
    evidence = evidence_of(found, laws_of(found))
    assert evidence.grade == "raced to the target"
    assert evidence.share == 1.0
    assert evidence.enough
    assert evidence.shortfall == 0.0
    least = min(truth.steps(b, lr) * (2e-3 + 5e-4 * b) for b, lr in tried)
    assert evidence.run_s == pytest.approx(least, rel=0.02)


def test_raced_for_a_share() -> None:
    """Of the run to its target by the trend; of what the job says; of ten passes."""
    truth, tried = Truth(critical=100, least=2000), [(64, 0.1), (16, 0.03), (32, 0.05)]
    least = min(truth.steps(b, lr) * (2e-3 + 5e-4 * b) for b, lr in tried)
    found = raced(made_up(critical=100), truth, tried, seconds=0.5 * least)
    evidence = evidence_of(found, laws_of(found))
    assert evidence.share == pytest.approx(0.4, rel=0.15)  # its level is at 4/5
    assert evidence.known
    assert evidence.grade == f"raced for {100 * evidence.share:.0f} % of a run"
    assert evidence.run_s == pytest.approx(least, rel=0.15)
    without = raced(
        made_up(critical=100), truth, tried, seconds=0.5 * least, target=False
    )
    long = replace(without, job=replace(without.job, run_examples=1e6))
    short = evidence_of(long, laws_of(long))
    raced_s = laws_of(long).passages
    assert raced_s is not None
    run_s = 1e6 / 64 * (2e-3 + 64 * 5e-4)
    assert short.share == pytest.approx(raced_s.seconds[-1] / run_s, rel=0.02)
    assert short.known
    assert "some" not in short.grade
    unknown = evidence_of(without, laws_of(without))
    assert not unknown.known
    assert unknown.grade.startswith("raced for some ")
    tiny = replace(without, job=replace(without.job, examples=10))
    assert evidence_of(tiny, laws_of(tiny)).share == 1.0


@pytest.mark.parametrize("target", [0.0, 1e-9, 0.5])
def test_a_target_that_no_trend_reaches_proves_nothing(target: float) -> None:
    """However long the race was against the passes that are presumed."""
    truth, tried = Truth(critical=100), [(64, 0.1), (16, 0.03), (32, 0.05)]
    found = raced(made_up(critical=100), truth, tried, seconds=5.0, target=False)
    assert found.race is not None
    assert min(m for lane in found.race.lanes for m in lane.metrics) > TARGET
    race = replace(found.race, target=target)
    job = replace(found.job, target=target, examples=10)
    found = replace(found, race=race, job=job)
    evidence = evidence_of(found, laws_of(found))
    assert not evidence.known
    assert not evidence.enough
    assert evidence.share == pytest.approx(2**-MOST_DOUBLINGS)
    assert math.isfinite(evidence.run_s)


def test_a_race_without_any_level_is_no_race() -> None:
    found = raced(made_up(), Truth(edge=1e-3), [(64, 0.1), (16, 0.1)])
    evidence = evidence_of(found, laws_of(found))
    assert (evidence.grade, evidence.share) == ("laws only", 0.0)


@given(st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_a_longer_race_leaves_less_in_doubt(a: float, b: float) -> None:
    short, long = (
        Evidence(grade="", share=share, run_s=1.0, known=True)
        for share in sorted((a, b))
    )
    assert short.shortfall >= long.shortfall >= 0
    assert short.shortfall <= SHORTFALL[0]
    assert long.enough or not short.enough
    assert long.enough == (max(a, b) >= LEAST_SHARE)


def test_the_table_of_shortfalls_is_met() -> None:
    for share, shortfall in zip(SHARES, SHORTFALL, strict=True):
        evidence = Evidence(grade="", share=share, run_s=1.0, known=True)
        assert np.isclose(evidence.shortfall, shortfall)
