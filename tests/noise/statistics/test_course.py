"""The noise along a whole run: sums that lose nothing, evenly resolved."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch.noise.statistics.course import LEAST_SAMPLES, READINGS, Course, Sums
from rightbatch.noise.statistics.moments import sampled_moments


@given(st.integers(2, 40), st.integers(0, 1000))
def test_joined_sums_give_the_moments_of_all_samples(samples: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    signal, noise = random.normal(1, 2, samples), random.normal(50, 9, samples)
    weights = random.integers(1, 99, samples).astype(float)
    joined = Sums.of(weights[0], signal[0], noise[0])
    for i in range(1, samples):
        joined = joined.join(Sums.of(weights[i], signal[i], noise[i]))
    found, truth = joined.moments, sampled_moments(signal, noise, weights)
    for name in ("grad_norm_sq", "trace", "var_grad_norm_sq", "var_trace"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-6)
    assert found.covariance == pytest.approx(truth.covariance, rel=1e-6, abs=1e-6)


def test_one_sample_has_no_variance() -> None:
    assert math.isinf(Sums.of(16, 1.0, 2.0).moments.var_trace)
    same = Sums.of(3, 0.1, 0.7).join(Sums.of(3, 0.1, 0.7)).join(Sums.of(3, 0.1, 0.7))
    assert 0 <= same.moments.var_trace < 1e-15


def course_of(steps: int, every: int = 1, metric_every: int = 4) -> Course:
    """Signal 1 and noise as the number of the step, in batches of 32."""
    course = Course()
    for i, step in enumerate(range(0, steps, every)):
        samples = {"plain": (1.0, float(step))}
        if i % metric_every == metric_every - 1:
            samples["adam"] = 1.0, 2.0
        course.add(step, 32 * (step + 1), 32, samples)
    return course


def test_a_long_run_is_evenly_resolved_from_its_beginning() -> None:
    # 100,000 steps, every seventh measured: the noise at a reading is that of its
    # middle, whether it lies at the beginning or at the end.
    course = course_of(100_000, every=7)
    assert len(course.stretches) <= 2 * READINGS
    assert sum(s.samples("plain") for s in course.stretches) == -(-100_000 // 7)
    readings = course.readings()
    assert READINGS / 2 <= len(readings) <= READINGS
    middles = np.array([sum(r.examples) / 2 for r in readings])
    gaps = np.diff(middles)
    assert gaps.max() <= 2.5 * gaps.min()
    assert middles[0] < 32 * 100_000 / READINGS * 2
    for reading in readings:
        trace = reading.sums["plain"].moments.trace
        assert trace == pytest.approx(sum(reading.steps) / 2, abs=7)
    assert sum(r.samples("plain") for r in readings) == -(-100_000 // 7)


def test_readings_are_joined_until_they_can_be_judged() -> None:
    readings = course_of(60, metric_every=5).readings()
    assert len(readings) == 3  # 12 samples of the rarer metric
    assert all(r.samples("adam") >= LEAST_SAMPLES for r in readings)
    rare = course_of(60, metric_every=30).readings()  # 2 samples: it widens none
    assert len(rare) == 60 // LEAST_SAMPLES
    assert len(course_of(3).readings()) == 1
    assert Course().readings() == []


def test_the_state_is_plain_and_complete() -> None:
    course = course_of(1000)
    again = Course.from_state(json.loads(json.dumps(course.state())))
    for step in range(1000, 1010):
        for one in (course, again):
            one.add(step, 32 * (step + 1), 32, {"plain": (1.0, 3.0)})
    assert again.state() == course.state()
