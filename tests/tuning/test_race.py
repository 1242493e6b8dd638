"""The race is fair, and a candidate that fails has lost it."""

import itertools
import types
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import made_up, raced, regression_job, with_target
from rightbatch.plan.choice import choose
from rightbatch.schedules.scaling import scaling_for
from rightbatch.training.run_state import RunState
from rightbatch.tuning.candidates import race_entries
from rightbatch.tuning.race import MARKS, Curve, Entry, race, speedup

curves = st.lists(st.floats(0.01, 10), min_size=MARKS, max_size=MARKS).map(
    lambda values: Curve(
        start=5.0,
        times=[float(i + 1) for i in range(MARKS)],
        values=list(itertools.accumulate([5.0, *values], min))[1:],
    )
)


@given(curves, curves)
def test_speed_is_symmetric_and_bounded(a: Curve, b: Curve) -> None:
    forth, back = speedup(a, b), speedup(b, a)
    assert 1 / MARKS <= forth <= MARKS
    assert forth * back == pytest.approx(1.0)


def test_twice_as_fast_is_two() -> None:
    times = [float(i + 1) for i in range(MARKS)]
    slow = Curve(start=10.0, times=times, values=[10 - t / 2 for t in times])
    fast = Curve(start=10.0, times=times, values=[10 - t for t in times])
    assert speedup(fast, slow) == pytest.approx(2.0)


def entry(role: str, size: int, lr: float = 0.01) -> Entry:
    scaling = scaling_for("sgd", 16, size, rule="none")
    return Entry(
        role=role,
        batch_size=size,
        micro_batch=size,
        lr=lr,
        scaling=scaling,
        step_s=1e-4,
    )


def test_a_race_of_equals_is_a_draw_and_a_handicap_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two candidates alike: the interval holds 1; a hundredth of the rate is slower.

    The clock counts readings, so the race is the same on any machine.
    """
    job = with_target(regression_job(examples=512), target=0.0)
    run = RunState.start(job)
    for _ in range(5):
        run.step()
    warm = run.snapshot()
    slow = replace(entry("slow", 16), scaling=replace(entry("x", 16).scaling, lr=0.01))
    counter = itertools.count()
    still = types.SimpleNamespace(perf_counter=lambda: 0.0)  # no wall clock
    monkeypatch.setattr("rightbatch.tuning.race.time", still)
    result = race(
        run,
        warm,
        [entry("plan", 16), entry("today", 16), slow],
        budget_s=0.9,
        held_out=None,
        clock=lambda: next(counter) / 1024,  # exact in binary
    )
    assert result is not None
    plan, today, handicap = result.candidates
    assert plan.speedup.value == pytest.approx(1.0, abs=0.01)
    assert plan.metrics == today.metrics
    assert handicap.speedup.high < 0.5
    assert handicap.steps == today.steps > 20


def test_a_race_without_time_is_not_run() -> None:
    job = with_target(regression_job())
    entries = [replace(entry("today", 16), step_s=10.0)]
    run = RunState.start(job)
    assert race(run, run.snapshot(), entries, budget_s=1, held_out=None) is None


def test_a_candidate_that_fails_has_lost_and_the_race_goes_on() -> None:
    job = with_target(regression_job(examples=512), target=0.0)
    run = RunState.start(job)
    run.step()
    warm = run.snapshot()
    wild = replace(entry("wild", 16), scaling=replace(entry("x", 16).scaling, lr=1e30))
    candidates = [entry("plan", 16), entry("today", 16), wild]
    counter = itertools.count()
    result = race(
        run,
        warm,
        candidates,
        budget_s=0.9,
        held_out=None,
        clock=lambda: next(counter) / 1024,  # exact in binary
    )
    assert result is not None
    assert result.candidates[2].speedup.value < 0.2


def test_the_candidates_are_plan_today_and_a_neighbour() -> None:
    choice = choose(made_up(t0=4e-3, t1=1e-3, critical=100))
    roles = {e.role: e.batch_size for e in race_entries(choice)}
    assert roles["today"] == 64
    assert roles["plan"] == choice.chosen.batch_size
    assert roles["neighbour"] in (roles["plan"] // 2, roles["plan"] * 2)
    stay = choose(raced(made_up(), {16: (0.5, 0.4, 0.6), 64: (1, 1, 1)}))
    assert stay.chosen.batch_size == 64
    assert {e.role for e in race_entries(stay)} == {"today", "smaller", "larger"}
