"""Stairs: where one example more than a power of two makes a step much longer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rightbatch.core.estimate import Estimate
from rightbatch.measure.measurements import TimePoint

DRAWS = 120  # bootstrap draws behind the interval
LEAST_ROUNDS = 3  # of which scatter can be told at all
STAIRS_FROM = 16  # below, one example more is a good deal more work


def stair(points: Sequence[TimePoint], seed: int = 0) -> tuple[int, Estimate] | None:
    """How much longer a step takes just past a power of two than the line says.

    Kernels that work in tiles, and devices that work in waves, start another one.

    Returns:
        The batch before the step up, and the ratio of the two times with what one
        example more costs anyway taken off; None where it was not measured, or too
        seldom to tell it from scatter.
    """
    by_size = {p.micro_batch: p for p in points}
    past = [p for p in points if past_a_stair(p, points)]
    if not past:
        return None
    after, edge = past[-1], by_size[past[-1].micro_batch - 1]
    if min(len(after.rounds), len(edge.rounds)) < LEAST_ROUNDS:
        return None
    below = by_size.get(edge.micro_batch // 2)
    slope = 0.0
    if below is not None:  # of the line, relative to the time at the edge
        rise = edge.step_time_s.value - below.step_time_s.value
        width = (edge.micro_batch - below.micro_batch) * edge.step_time_s.value
        slope = max(rise / width, 0.0)
    random = np.random.default_rng(seed)

    def median(point: TimePoint, drawn: bool) -> float:
        rounds = np.array(point.rounds)
        return float(np.median(random.choice(rounds, len(rounds)) if drawn else rounds))

    def ratio(drawn: bool) -> float:
        return median(after, drawn) / median(edge, drawn) - slope

    draws = [ratio(True) for _ in range(DRAWS)]
    return edge.micro_batch, Estimate.from_draws(
        ratio(False), draws, unit="x", n=len(edge.rounds), method="bootstrap"
    )


def past_a_stair(point: TimePoint, points: Sequence[TimePoint]) -> bool:
    """Whether it was timed only to compare with the power of two just below."""
    edge = point.micro_batch - 1
    power = edge >= STAIRS_FROM and edge & (edge - 1) == 0
    return power and any(p.micro_batch == edge for p in points)
