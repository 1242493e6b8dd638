"""Penalties are paired differences at equal examples."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from rightbatch.measure.measurements import Lane
from rightbatch.sweep.branch_penalties import largest_without_loss, penalties_of

HORIZON = 64.0
# What the streams differ by, in loss: far more than the batches do.
STREAMS = (0.0, 10.0, -3.0)


def lane(
    batch: int,
    seed: int,
    loss: float,
    *,
    lr: float = 0.1,
    end: Literal["time", "diverged"] = "time",
) -> Lane:
    """A loss that comes down to a value in the first half and stays."""
    half = int(HORIZON / batch / 2)
    return Lane(
        batch_size=batch,
        micro_batch=batch,
        lr=lr,
        seed=seed,
        step_s=float(batch),
        steps=(half, 2 * half),
        metrics=(loss, loss),
        end=end,
    )


def streams(*worse: tuple[int, float, float], sign: float = 1.0) -> list[list[Lane]]:
    """The same branches on every stream: batch, rate, loss over the stream's own."""
    jitter = (0.001, 0.0, -0.001)
    return [
        [
            lane(b, seed, sign * (common + by + b * jitter[seed]), lr=lr)
            for b, lr, by in worse
        ]
        for seed, common in enumerate(STREAMS)
    ]


def test_what_a_stream_does_to_all_batches_cancels() -> None:
    made = streams((4, 0.1, 0.0), (8, 0.1, 0.2))
    own, larger = penalties_of(made, 4, HORIZON)
    assert (own.loss.value, own.loss.low, own.loss.high) == (0, 0, 0)
    assert larger.loss.value == pytest.approx(0.2)
    # 4 thousandths of jitter by stream: t(0.975, 2) * 0.004 / sqrt(3).
    assert larger.loss.high - 0.2 == pytest.approx(
        4.303 * 0.004 / math.sqrt(3), rel=1e-3
    )


def test_the_better_rate_of_each_batch_counts() -> None:
    made = streams((4, 0.1, 0.3), (4, 0.2, 0.0), (8, 0.1, 0.1), (8, 0.2, 0.5))
    own, larger = penalties_of(made, 4, HORIZON)
    assert (own.lr, larger.lr) == (0.2, 0.1)
    assert larger.loss.value == pytest.approx(0.1)


def test_where_more_is_better_less_is_worse() -> None:
    made = streams((4, 0.1, 0.0), (8, 0.1, 0.2), sign=-1.0)
    assert penalties_of(made, 4, HORIZON, sign=-1.0)[1].loss.value == pytest.approx(0.2)


def test_one_that_diverged_is_endlessly_worse() -> None:
    made = [
        [lane(4, 0, 1.0), lane(8, 0, 1.0)],
        [lane(4, 1, 1.0), lane(8, 1, math.nan, end="diverged")],
    ]
    assert penalties_of(made, 4, HORIZON)[1].loss.low == math.inf


def test_the_largest_without_a_loss_ends_at_the_first_with_one() -> None:
    # A larger batch that happens to be fine again does not count.
    made = streams(
        (2, 0.1, 0.9), (4, 0.1, 0), (8, 0.1, 0), (16, 0.1, 0.5), (32, 0.1, 0)
    )
    penalties = penalties_of(made, 4, HORIZON)
    assert largest_without_loss(penalties, 4) == 8
    assert largest_without_loss(penalties[:3], 4) == 8
    assert largest_without_loss(penalties[:2], 4) == 4
