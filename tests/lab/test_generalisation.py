"""What the claims on the result rest on: plateaus of sharpness, wrong classes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from rightbatch.lab.generalisation import (
    batch_sharpness,
    small_against_large,
    top_curvature,
)
from rightbatch.lab.generalisation.batch_sharpness import MOMENTUM, plateau
from rightbatch.lab.generalisation.batchnorm_batch import held_out
from rightbatch.lab.rates.small_net import small_job
from rightbatch.lab.training_runs import digits_job, started

pytest.importorskip("sklearn")


def heavy_ball(curvature: float, lr: float, momentum: float) -> float:
    """How far from its minimum a parabola's weight is after many steps."""
    weight, velocity = 1.0, 0.0
    for _ in range(2000):
        velocity = momentum * velocity + curvature * weight
        weight -= lr * velocity
    return abs(weight)


@pytest.mark.parametrize("momentum", [0.0, 0.5, MOMENTUM])
def test_the_upper_plateau_is_where_a_parabola_becomes_unstable(
    momentum: float,
) -> None:
    edge = plateau(0.3, momentum, small=False)
    assert heavy_ball(0.99 * edge, 0.3, momentum) < 1e-3
    assert heavy_ball(1.01 * edge, 0.3, momentum) > 1e3


def test_the_lower_plateau_is_that_of_the_rate_which_momentum_amounts_to() -> None:
    effective = 0.3 / (1 - MOMENTUM)
    same = plateau(effective, 0.0, small=True)
    assert plateau(0.3, MOMENTUM, small=True) == pytest.approx(same)


def test_the_squared_loss_is_half_the_squared_distance() -> None:
    pixels, classes = torch.rand(5, 10), torch.tensor([0, 3, 3, 9, 1])
    slow = 0.0
    for row, right in zip(pixels.tolist(), classes.tolist(), strict=True):
        slow += sum((value - (i == right)) ** 2 for i, value in enumerate(row)) / 2 / 5
    loss = batch_sharpness.squared_loss(torch.nn.Identity(), (pixels, classes))
    assert float(loss) == pytest.approx(slow, rel=1e-5)


def test_a_fifth_of_the_classes_is_wrong_and_no_digit_is_on_both_sides() -> None:
    job, (held, _) = small_against_large.noisy_digits(seed=3)
    pixels, classes = job.data
    every, true = (t.tolist() for t in digits_job().data)
    rows = {tuple(row): c for row, c in zip(every, true, strict=True)}
    right = [rows[tuple(row)] for row in pixels.tolist()]
    wrong = sum(a != b for a, b in zip(right, classes.tolist(), strict=True))
    assert 0.1 * len(right) < wrong < 0.3 * len(right)
    assert not {tuple(r) for r in pixels.tolist()} & {tuple(r) for r in held.tolist()}


def test_statistics_of_pairs_ruin_a_short_run() -> None:
    pairs, eights = (held_out(0, group, norm=True, steps=100) for group in (2, 8))
    assert pairs > 1.5 * eights


def test_small_within_no_direction_is_a_large_step_and_within_all_small_ones() -> None:
    lr, rate = 0.05, 0.3
    with started(small_job(seed=2)) as run:
        size = sum(p.numel() for p in run.parameters)
        moment = run.snapshot()

        def after(step: Callable[..., None], *arguments: Any) -> torch.Tensor:
            run.rewind(moment)
            step(run, *arguments)
            return parameters_to_vector(run.parameters).detach().clone()

        large = after(top_curvature.plain, top_curvature.LARGE, rate)
        small = after(top_curvature.plain, top_curvature.SMALL, lr)
        none = after(top_curvature.held_small, torch.zeros(1, size), lr, rate)
        whole = after(top_curvature.held_small, torch.eye(size), lr, rate)
    torch.testing.assert_close(none, large, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole, small, atol=1e-5, rtol=0)
    assert (large - small).abs().max() > 1e-3
