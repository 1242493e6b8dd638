"""The law of steps: least squares, intervals that cover, refusals."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb
from reference import steps_by_grid


@settings(max_examples=30, deadline=None)
@given(st.floats(20, 2000), st.integers(0, 10_000))
def test_steps_fit_is_least_squares(critical: float, seed: int) -> None:
    """Against a brute-force grid, on scattered truth."""
    random = np.random.default_rng(seed)
    b = np.array([4.0, 16, 64, 256, 1024, 4096])
    steps = 300 * (1 + critical / b) * np.exp(0.05 * random.normal(size=6))
    law = rb.fit_steps(b.tolist(), steps.tolist())
    assert law.critical_batch.value == pytest.approx(steps_by_grid(b, steps), rel=2e-3)


@pytest.mark.slow
def test_steps_intervals_cover() -> None:
    # 600 sets of 7 batches with 10 % scatter; the profile interval holds the truth in
    # 95 %, accepted 91 to 98.
    random = np.random.default_rng(0)
    b = np.geomspace(8, 2048, 7)
    held = [0, 0]
    for _ in range(600):
        steps = 500 * (1 + 100 / b) * np.exp(0.1 * random.normal(size=7))
        law = rb.fit_steps(b.tolist(), steps.tolist())
        held[0] += law.critical_batch.low <= 100 <= law.critical_batch.high
        held[1] += law.min_steps.low <= 500 <= law.min_steps.high
    assert 0.91 <= held[0] / 600 <= 0.98
    assert held[1] / 600 >= 0.93


def test_an_exact_law_is_recovered() -> None:
    b = [8, 32, 128, 512]
    law = rb.fit_steps(b, [100 * (1 + 60 / x) for x in b])
    assert law.critical_batch.value == pytest.approx(60, rel=1e-4)
    assert law.min_steps.value == pytest.approx(100, rel=1e-4)
    assert law.r_squared > 0.999999
    assert law.predict(60) == pytest.approx(200, rel=1e-4)


@pytest.mark.parametrize(
    ("steps", "way"),
    [
        (lambda b: 50_000 / b, "larger batches"),  # all far below the critical batch
        (lambda b: 47.0, "smaller batches"),  # all far above it
        (lambda b: 1000 * math.exp(2 * math.sin(b)), "more runs"),  # chaos
    ],
)
def test_what_runs_do_not_determine_is_refused(steps: Any, way: str) -> None:
    b = [16.0, 32.0, 64.0, 128.0]
    with pytest.raises(rb.UnidentifiedError) as refused:
        rb.fit_steps(b, [steps(x) for x in b])
    assert way in refused.value.fix


@pytest.mark.parametrize(
    ("b", "s"),
    [([1, 2], [3]), ([1, 2, 0], [1, 1, 1]), ([1, 2, 3], [1, math.nan, 1]), ([], [])],
)
def test_bad_runs_are_refused(b: list[float], s: list[float]) -> None:
    with pytest.raises((rb.SettingError, rb.UnidentifiedError)):
        rb.fit_steps(b, s)
