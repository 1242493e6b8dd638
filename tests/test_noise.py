"""Gradient noise against its definitions, by brute force and by statistics."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rightbatch as rb
from cases import made_up, regression_job
from reference import pairwise_moments, per_example_gradients, true_noise
from rightbatch.fit.critical_batch import critical_from_noise
from rightbatch.measure.measurements import MetricPoint
from rightbatch.measure.noise import compare, measure_noise
from rightbatch.measure.run_progress import (
    has_stalled,
    points_of_progress,
)
from rightbatch.noise.statistics.moments import (
    NoiseMoments,
)
from rightbatch.noise.statistics.optimizer_metric import optimizer_metric
from rightbatch.training.run_state import RunState


def test_gradients_made_twice_say_what_kept_ones_say() -> None:
    # Dropout: both passes must draw the same random numbers.
    job = regression_job(
        model=lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(), nn.Linear(8, 1)),
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
    )
    training = RunState.start(job)
    training.split(16)
    training.step()
    draws = [torch.arange(8) + 8 * j for j in range(6)]
    found = []
    for kept_bytes in (1 << 30, 0):
        torch.manual_seed(3)
        found.append(compare(training, draws, micro_batch=3, kept_bytes=kept_bytes))
    for name in ("squares", "crosses", "own_squares", "own_crosses"):
        kept, again = (getattr(one, name) for one in found)
        np.testing.assert_allclose(kept, again, rtol=1e-6)
    assert found[0].losses == found[1].losses


def test_measured_noise_is_the_noise_of_the_data() -> None:
    # 60 measurements of 32 groups of 8 at fixed weights; both moments within 4
    # standard errors of the truth over all 256 examples.
    job = regression_job(examples=256)
    training = RunState.start(job)
    truth = true_noise(job, training.model)
    generator = torch.Generator().manual_seed(0)
    found = [
        measure_noise(training, group_size=8, micro_batch=3, generator=generator).plain
        for _ in range(60)
    ]
    values = np.array([(m.grad_norm_sq, m.trace) for m in found])
    error = values.std(axis=0, ddof=1) / math.sqrt(60)
    assert (abs(values.mean(axis=0) - truth) < 4 * error).all()


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(5), nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(x))


def test_measuring_noise_changes_nothing() -> None:
    training = RunState.start(regression_job(model=Normed))
    training.split(16)
    training.step()
    state = {k: v.clone() for k, v in training.model.state_dict().items()}
    held = [p.grad for p in training.model.parameters()]
    position = training.stream.position
    generator = torch.Generator().manual_seed(0)
    measure_noise(training, group_size=8, micro_batch=8, generator=generator)
    assert all(torch.equal(v, state[k]) for k, v in training.model.state_dict().items())
    assert all(
        p.grad is g for p, g in zip(training.model.parameters(), held, strict=True)
    )
    assert training.stream.position == position


def test_adams_metric_is_the_gradient_in_its_own_scale() -> None:
    job = regression_job(optimizer=lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-3))
    training = RunState.start(job)
    params = list(training.model.parameters())
    assert optimizer_metric(training.optimizer, params) is None  # before the first step
    training.split(16)
    training.step()
    found = measure_noise(
        training,
        group_size=4,
        micro_batch=4,
        groups=16,
        generator=torch.Generator().manual_seed(5),
    )
    # The same examples, slowly: one gradient a group, weighted by coordinate.
    generator = torch.Generator().manual_seed(5)
    v = training.optimizer.state[params[0]]["exp_avg_sq"] / (1 - 0.999)
    weight = (1 / (v.sqrt() + 1e-3)).flatten().double().sqrt().numpy()
    rows = per_example_gradients(job, training.model).numpy()
    groups = [
        rows[torch.randint(job.length, (4,), generator=generator)].mean(0) * weight
        for _ in range(16)
    ]
    truth = pairwise_moments(np.array(groups), 4)
    assert found.preconditioned is not None
    got = (found.preconditioned.grad_norm_sq, found.preconditioned.trace)
    np.testing.assert_allclose(got, truth, rtol=1e-4)


def point(signal: float, noise: float, step: int = 0) -> Any:
    made = NoiseMoments(
        grad_norm_sq=signal,
        trace=noise,
        var_grad_norm_sq=(0.01 * signal) ** 2,
        var_trace=(0.01 * noise) ** 2,
        covariance=0.0,
    )
    return type("Point", (), {"plain": made, "step": step})()


@pytest.mark.parametrize("batch", [1, 10, 1000])
def test_the_critical_batch_of_a_run_whose_noise_grows(batch: int) -> None:
    """Against the integral itself: noise N(s) = 10 + 40 s over minimal progress s.

    A run of batch B reaches progress s(t) by ds/dt = 1 / (1 + N(s)/B). Points evenly
    spaced in t must give the mean of N over s, 30, whatever B was used.
    """
    progress, taken, states = 0.0, 0, []
    while progress < 1:
        noise = 10 + 40 * progress
        states.append(noise)
        progress += 0.0005 / (1 + noise / batch) * (1 + 30 / batch)
        taken += 1
    spaced = [states[int((i + 0.5) * taken / 200)] for i in range(200)]
    law = critical_from_noise([point(1.0, n) for n in spaced], batch)
    assert law.critical_batch.value == pytest.approx(30, rel=0.02)


def test_points_count_by_the_steps_they_stand_for() -> None:
    """Noise 10 for 80 of 100 steps, 50 for the rest, seen at 3 and at 1 places."""
    points = [point(1.0, 10.0, 40), point(1.0, 50.0, 82), point(1.0, 50.0, 90)]
    points += [point(1.0, 50.0, 98)]
    even = [point(1.0, 10.0)] + [point(1.0, 50.0)] * 3
    law, same = (critical_from_noise(p, 1 << 30).critical_batch for p in (points, even))
    assert law.value == pytest.approx((42 * 10 + (25 + 8 + 8) * 50) / 83, rel=1e-3)
    assert same.value == pytest.approx(40, rel=1e-3)


def test_a_point_without_signal_does_not_spoil_the_run() -> None:
    points = [point(1.0, 50.0)] * 5 + [point(-0.01, 50.0)]
    law = critical_from_noise(points, 64)
    assert 50 < law.critical_batch.value < 120
    with pytest.raises(rb.UnidentifiedError, match="fewer than 2"):
        critical_from_noise(points[:1], 64)


def test_noise_after_a_standstill_does_not_count() -> None:
    """A run that overfits: its evaluation is best at step 40, and it runs to 100."""
    found = made_up(points=10)  # at steps 10, 20, ... 100
    metrics = tuple(
        MetricPoint(step=s, examples=64 * s, metric=1 + abs(s - 40) / 40)
        for s in range(2, 111, 2)
    )
    job = replace(found.job, has_evaluate=True, target=0.5)
    over = replace(found, job=job, metrics=metrics)
    assert [p.step for p in points_of_progress(over)] == [10, 20, 30, 40]
    still = replace(over, metrics=metrics[:30])  # too early to call it a standstill
    assert points_of_progress(still) == found.noise
    text = " ".join(rb.decide(over).plan.limits)
    assert "got worse in the end" in text


def test_a_plateau_is_no_standstill() -> None:
    """Accuracy stays at that of the majority for long, then rises."""
    flat = [MetricPoint(step=s, examples=s, metric=0.9) for s in range(1, 400)]
    assert not has_stalled(flat, "max")
    assert not has_stalled([replace(m, metric=0.9) for m in flat], "min")


def test_zero_gradients_are_left_out() -> None:
    law = critical_from_noise([point(1.0, 50.0)] * 3 + [point(0.0, 0.0)], 64)
    assert law.critical_batch.value == pytest.approx(50, rel=0.01)


def test_batch_norm_at_a_small_batch_is_measured_in_groups_it_runs_on() -> None:
    tuning = rb.tune(regression_job(model=Normed, batch_size=4), budget_s=2)
    assert tuning.measurements.times[0].micro_batch == 2
    assert tuning.measurements.noise[0].group_size >= 2
    assert min(o.batch_size for o in tuning.choice.options) >= 2
