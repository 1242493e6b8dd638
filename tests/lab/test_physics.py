"""Claims on noise as temperature: simulators and exact laws against slow ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import solve_banded

from rightbatch.lab.chapters import claim_named
from rightbatch.lab.claim import run_claim
from rightbatch.lab.physics import annealing, flat_over_sharp, temperature
from rightbatch.lab.physics.chains import (
    LOOK_UP,
    after,
    batch_noise,
    batches_of,
    geometric,
    looked_at,
    passages,
    walk,
)
from rightbatch.lab.physics.wells import DoubleWell
from rightbatch.schedules.schedule import Constant, Stages

WELL = DoubleWell(0.1, noise=200.0)


def test_a_chain_is_torchs_sgd_step_by_step() -> None:
    """With momentum and a known noise, against a loop over one number."""
    noise = np.random.default_rng(0).standard_normal((20, 3))
    errors = iter(noise)
    chains = walk(np.ones(3), lambda w: 2 * w, 0.1, lambda at: next(errors), 0.9)
    seen = looked_at(chains, (1, 20))
    weight, velocity = np.ones(3), np.zeros(3)
    for step in range(20):
        velocity = 0.9 * velocity + 2 * weight + noise[step]
        weight = weight - 0.1 * velocity
        if step == 0:
            np.testing.assert_allclose(seen[0], weight)
    np.testing.assert_allclose(seen[1], weight)


def test_noise_is_that_of_a_mean_over_the_batch() -> None:
    """Variance over 20,000 draws, to 5 % (5 standard errors); by place and by step."""
    rng = np.random.default_rng(0)
    at = np.array([[1.0], [2.0]]) * np.ones((2, 20_000))
    noise = batch_noise(rng, lambda w: w, iter([np.array([[4], [8]]), np.array([[1]])]))
    np.testing.assert_allclose(noise(at).var(1), (1 / 4, 2 / 8), rtol=0.05)
    np.testing.assert_allclose(noise(at).var(1), (1.0, 2.0), rtol=0.05)


def test_passages_are_counted_and_put_back() -> None:
    """A walker that moves 1 left a step, from 2 to 0, arrives every second step."""
    chains = walk(np.array([2.0, 5.0]), np.zeros_like, 1.0, lambda at: np.ones(2))
    assert passages(chains, 2.0, 0.0, 9) == [4, 3]


def test_batches_follow_examples_not_steps() -> None:
    stages = Stages(((0, 2), (100, 10)))
    batches = batches_of(stages, 80)
    assert batches[:49] == [2] * 49
    assert batches[50 + LOOK_UP // 10 :] == [10] * (30 - LOOK_UP // 10)
    grown = batches_of(geometric(30, 300, 5000), 5000)
    assert grown[0] == 30
    assert 260 <= grown[-1] <= 300
    assert grown == sorted(grown)
    assert batches_of(Constant(7), 3) == [7, 7, 7]


@pytest.mark.parametrize("leftwards", [True, False])
def test_passage_times_solve_the_backward_equation(leftwards: bool) -> None:
    """T t'' - U' t' = -1, by finite differences, one wall reflecting; to 1 %."""
    left, _, right = WELL.places
    w = np.linspace(left, 2.5, 4001) if leftwards else np.linspace(-2.5, right, 4001)
    h, heat, n = w[1] - w[0], 0.25, len(w)
    drift = -WELL.slope(w) / (2 * h)
    matrix = np.zeros((3, n))
    matrix[0, 1:] = (heat / h**2 + drift)[:-1]
    matrix[1] = -2 * heat / h**2
    matrix[2, :-1] = (heat / h**2 - drift)[1:]
    goal, wall = (0, n - 1) if leftwards else (n - 1, 0)
    matrix[1, wall] = -heat / h**2
    inside = slice(1, None) if leftwards else slice(None, -1)
    times = np.zeros(n)
    times[inside] = solve_banded((1, 1), matrix[:, inside], -np.ones(n - 1))
    assert times[goal] == 0
    start = right if leftwards else left
    exact = WELL.passage_time(heat, leftwards=leftwards)
    assert np.interp(start, w, times) == pytest.approx(exact, rel=0.01)


def test_kramers_is_the_limit_of_the_exact_time() -> None:
    ratios = [WELL.passage_time(t) / WELL.kramers_time(t) for t in (0.25, 0.1, 0.03)]
    assert ratios[0] > ratios[1] > ratios[2] > 1
    assert ratios[2] == pytest.approx(1, abs=0.02)


def test_two_rates_keep_boltzmann_and_begin_at_nothing() -> None:
    shares = WELL.shares_along(np.full(3, 8), np.array([1e-9, 1e4, 1e9]))
    assert shares[0] == pytest.approx(0, abs=1e-6)
    assert shares[-1] == pytest.approx(WELL.left_share(0.25), abs=0.03)


def test_annealing_schedule_is_the_one_of_the_theorem() -> None:
    """b = eta sigma^2 log(k + k0) / (2 c): T log(k + k0) stays c, to a 10 % grid."""
    well, c, steps = annealing.WELL, 1.4, 5000
    schedule = annealing.logarithmic(c, steps)
    for k in (0, 100, 1000, steps):
        batch = schedule.batch_size(k * annealing.FIRST)
        heat = well.heat(batch)
        assert heat * np.log(k + schedule.offset) == pytest.approx(c, rel=0.06)


def test_odds_of_two_wells_by_a_long_walk() -> None:
    """The stationary solve against 2,000 chains, to 10 % (4 standard errors)."""
    flat = flat_over_sharp
    lr, batch = 1.5 / flat.SHARP, 8
    noise = batch_noise(
        np.random.default_rng(1), lambda w: flat.variance(lr, w, aligned=False), batch
    )
    chains = walk(np.tile([-1.0, 0.2], 1000), flat.slope, lr, noise)
    after(chains, 500)
    share = np.mean([after(chains, 20) < 0 for _ in range(50)])
    assert flat.exact_odds(lr, batch) == pytest.approx(share / (1 - share), rel=0.1)


def test_bowls_have_the_noise_and_curvature_they_are_said_to_have() -> None:
    job = temperature.bowls_job((0.5,), 3, 64, seed=0)
    model = job.make_model()
    loss = job.loss(model, job.data)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    (weight,) = model.parameters()
    assert weight.grad is not None
    assert weight.grad.abs().max() < 1e-6
    assert job.data[0].var(0, correction=0).numpy() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["stationary-variance"])
def test_quick_claims_come_to_their_recorded_verdict(name: str) -> None:
    outcome = run_claim(claim_named(name), seed=1)
    assert outcome.as_recorded, str(outcome)
