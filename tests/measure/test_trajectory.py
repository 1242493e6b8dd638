"""A real run with noise along it: even points, its end, and what fits its time."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import rightbatch as rb
from cases import regression_job, with_target
from rightbatch.measure.trajectory import (
    FIRST_SPACING,
    LEAST_POINTS,
    MOST_POINTS,
    NOISE_SHARE,
    measure_trajectory,
)
from rightbatch.training.run_state import RunState
from slow_steps import Clock, slow_job


@pytest.mark.parametrize("budget_s", [2.0, 4.0])
def test_no_part_of_the_run_is_without_noise(
    monkeypatch: pytest.MonkeyPatch, budget_s: float
) -> None:
    clock = Clock(monkeypatch)
    run = RunState.start(slow_job(clock, fixed_s=1e-3, example_s=1e-4))
    found = measure_trajectory(run, budget_s=budget_s)
    steps = [0, *(p.step for p in found.points), run.steps]
    assert 6 <= len(found.points) < MOST_POINTS
    assert max(b - a for a, b in itertools.pairwise(steps)) < run.steps / 3
    assert {p.groups for p in found.points} == {32}
    assert clock.now <= budget_s


def test_points_of_a_long_run_are_evenly_spaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = slow_job(Clock(monkeypatch), fixed_s=1e-2, example_s=1e-5)
    monkeypatch.setattr("rightbatch.measure.trajectory.NOISE_SHARE", 0.99)
    found = measure_trajectory(RunState.start(job), budget_s=30.0)
    steps = [0, *(p.step for p in found.points)]
    assert len({b - a for a, b in itertools.pairwise(steps)}) == 1


@pytest.mark.parametrize(
    ("budget_s", "steps"), [(0.9, 0), (5.0, 3), (15.0, 6), (60.0, 20), (300.0, 120)]
)
def test_long_steps_fit_their_time(
    monkeypatch: pytest.MonkeyPatch, budget_s: float, steps: int
) -> None:
    """A step takes a second, noise of 8 groups of 4 examples two, of 32 eight."""
    clock = Clock(monkeypatch)
    run = RunState.start(slow_job(clock, example_s=1 / 16))
    found = measure_trajectory(
        run, budget_s=budget_s, held_out=torch.arange(32), step_s=1.0, metric_s=0.7
    )
    assert clock.now <= budget_s
    assert steps <= run.steps <= 1.5 * steps
    spent = sum(p.groups * p.group_size for p in found.points) / 16
    assert spent <= NOISE_SHARE * budget_s
    assert all(8 <= p.groups <= 32 for p in found.points)
    if budget_s >= 15:
        assert found.metrics[0].step == 1
        assert found.metric_s == pytest.approx(32 / 16 / 3)


@pytest.mark.parametrize(("budget_s", "points"), [(4.0, 0), (7.0, 1), (40.0, 5)])
def test_noise_is_left_out_where_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, budget_s: float, points: int
) -> None:
    clock = Clock(monkeypatch)
    run = RunState.start(slow_job(clock, example_s=1 / 16))
    found = measure_trajectory(run, budget_s=budget_s, step_s=1.0)
    assert len(found.points) == points
    assert run.steps > 0
    assert clock.now <= budget_s


def test_the_run_ends_soon_after_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    job = with_target(slow_job(clock, example_s=1 / 16), target=25.0)
    run = RunState.start(job)
    found = measure_trajectory(run, budget_s=1000.0)
    assert found.reached
    first = next(m.step for m in found.metrics if job.met(m.metric))
    assert run.steps <= max(first, FIRST_SPACING * LEAST_POINTS)
    assert len(found.points) >= LEAST_POINTS


def test_a_target_met_at_once_still_has_points() -> None:
    job = with_target(regression_job(), target=30.0)
    assert not job.met(job.evaluated(job.make_model()))
    found = measure_trajectory(RunState.start(job), budget_s=5.0)
    assert found.reached
    assert len(found.points) >= LEAST_POINTS


@pytest.mark.parametrize("evaluates", [False, True])
def test_a_run_that_diverges_keeps_what_was_seen(evaluates: bool) -> None:
    """Nothing is raised: that today's setting diverges is what was found."""
    job = regression_job(optimizer=lambda p: torch.optim.SGD(p, lr=3.0))
    run = RunState.start(with_target(job) if evaluates else job)
    found = measure_trajectory(run, budget_s=20.0)
    assert found.diverged
    assert not found.reached
    assert found.points
    assert all(math.isfinite(p.loss or 0.0) for p in found.points)
    assert bool(found.metrics) == evaluates
    assert all(math.isfinite(m.metric) for m in found.metrics)


def test_an_evaluation_that_is_not_finite_is_divergence() -> None:
    values = iter([3.0, 2.0, math.nan])
    job = replace(regression_job(), evaluate=lambda model: next(values), target=1.0)
    run = RunState.start(job)
    found = measure_trajectory(run, budget_s=20.0)
    assert found.diverged
    assert [m.metric for m in found.metrics] == [3.0, 2.0]


def test_errors_of_the_job_are_no_divergence() -> None:
    def evaluate(model: Any) -> float:
        raise ValueError("no such file")

    job = replace(regression_job(), evaluate=evaluate, target=1.0)
    with pytest.raises(rb.JobError, match="evaluate"):
        measure_trajectory(RunState.start(job), budget_s=5.0)


@pytest.mark.parametrize("seed", range(3))
def test_without_evaluate_held_out_examples_notice_overfitting(seed: int) -> None:
    """Thirty examples, forty weights, half noise: better first, then worse."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, 40, generator=generator)
    y = 10 * x[:, :1] + 10 * torch.randn(400, 1, generator=generator)
    job = regression_job(width=40, batch_size=5, data=(x, y))
    kept, held = torch.arange(30), torch.arange(30, 400)
    run = RunState.start(job)
    run.rewind(run.snapshot(), kept=kept)
    found = measure_trajectory(run, budget_s=20.0, held_out=held)
    assert found.stalled
    assert not found.reached
    best = min(point.metric for point in found.metrics)
    assert best < found.metrics[0].metric
    assert best < found.metrics[-1].metric


def test_it_ends_with_todays_run() -> None:
    """Beyond its length there is no schedule, and nothing to learn from."""
    job = replace(regression_job(), rate="cosine:3epochs", epochs=3)
    run = RunState.start(job)
    measure_trajectory(run, budget_s=20.0)
    assert run.examples == 3 * 256
