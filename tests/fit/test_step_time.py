"""The law of step time: the truth is found, and the interval holds it."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb
from cases import made_up
from rightbatch.fit.step_time import fit_time
from rightbatch.measure.measurements import Contention


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-5, 1e-1), st.floats(1e-6, 1e-2))
def test_an_affine_truth_is_found(t0: float, t1: float) -> None:
    law = fit_time(made_up(t0=t0, t1=t1).times)
    assert law.kind == "affine"
    for b in (1, 10, 100):
        assert law.seconds(b) == pytest.approx(t0 + t1 * b, rel=1e-3)
    assert law.step_seconds(16, 4) == pytest.approx(
        4 * (t0 + 16 * t1) - 3 * 0.1 * t0, rel=1e-3
    )


def test_noise_in_times_widens_the_interval_that_holds_the_truth() -> None:
    quiet, loud = (fit_time(made_up(jitter=j).times) for j in (0.01, 0.1))
    assert quiet.half_batch.relative < loud.half_batch.relative
    assert loud.half_batch.low <= 2e-3 / 5e-4 <= loud.half_batch.high


def test_a_bent_truth_is_not_forced_into_a_line() -> None:
    found = made_up()
    points = []
    for p in found.times:
        seconds = 1e-3 + 4e-4 * p.micro_batch**1.25
        rounds = (seconds,) * 9
        value = dataclasses.replace(
            p.step_time_s, value=seconds, low=seconds, high=seconds
        )
        points.append(dataclasses.replace(p, step_time_s=value, rounds=rounds))
    law = fit_time(points)
    assert law.kind == "affine-power"
    assert law.parameters[2] == pytest.approx(1.25, rel=0.01)
    assert law.held_out["affine-power"] < 0.5 * law.held_out["affine"]


def test_a_busy_machine_is_judged_by_cpu_time() -> None:
    slow = [
        dataclasses.replace(p, rounds=tuple(3 * r for r in p.rounds))
        for p in made_up().times
    ]
    busy = Contention(busy=True, stalled=0.9, reason="")
    law = fit_time(slow, busy)
    assert law.clock == "process"
    assert law.seconds(100) == pytest.approx(2e-3 + 5e-2, rel=1e-3)


def test_two_sizes_are_no_law() -> None:
    with pytest.raises(rb.UnidentifiedError, match="at least 3"):
        fit_time(made_up(sizes=(1, 2)).times)
