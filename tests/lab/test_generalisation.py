"""What the claims on the result rest on: plateaus of sharpness, wrong classes."""

import pytest
import torch

from rightbatch.lab.generalisation import batch_sharpness, small_against_large
from rightbatch.lab.generalisation.batch_sharpness import MOMENTUM, plateau
from rightbatch.lab.generalisation.batchnorm_batch import held_out
from rightbatch.lab.training_runs import digits_job

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
