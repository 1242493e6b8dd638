"""How far the measuring run came: to its target, to a standstill, or to neither."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rightbatch.measure.measurements import (
    THIS_RUN,
    Measurements,
    MetricPoint,
    NoisePoint,
)

WINDOW = 5  # latest evaluations whose median counts as the present value
WORSE = 0.02  # of all that was gained must be lost again at a standstill [assumed]
LEAST_METRICS = 30  # evaluations before a standstill is believed [assumed]
STALLED = 2.5  # times the step of the best value [assumed]


def best_step(metrics: Sequence[MetricPoint], goal: str) -> int:
    """The last step at which ``evaluate`` was at its best."""
    sign = 1 if goal == "min" else -1
    return min(reversed(metrics), key=lambda m: sign * m.metric).step


def has_stalled(metrics: Sequence[MetricPoint], goal: str) -> bool:
    """Whether ``evaluate`` has clearly got worse again, long after its best value.

    What comes after the best (overfitting, most often) is no progress, and its noise,
    which grows without end as the training loss goes to zero, must not count. A
    plateau is no standstill: a run may leave it.
    """
    if len(metrics) < LEAST_METRICS:
        return False
    sign = 1 if goal == "min" else -1
    values = [sign * m.metric for m in metrics]
    lost = statistics.median(values[-WINDOW:]) - min(values)
    gained = values[0] - min(values)
    late = metrics[-1].step >= STALLED * best_step(metrics, goal)
    return late and lost > WORSE * gained > 0


def steps_to_target(measurements: Measurements) -> int | None:
    """Steps after which the measuring run met the target, if it did."""
    job = measurements.job
    if job.target is None or measurements.metric != "evaluate":
        return None
    sign = 1 if job.goal == "min" else -1
    met = (m for m in measurements.metrics if sign * m.metric <= sign * job.target)
    return next((m.step for m in met), None)


def points_of_progress(measurements: Measurements) -> tuple[NoisePoint, ...]:
    """The noise points up to the best evaluation, if the run stood still after it.

    Noise of another run is no matter of how far this one came.
    """
    if measurements.noise_source != THIS_RUN:
        return measurements.noise
    metrics, goal = measurements.metrics, measurements.metric_goal
    if steps_to_target(measurements) is not None or not has_stalled(metrics, goal):
        return measurements.noise
    end = best_step(metrics, goal)
    kept = tuple(p for p in measurements.noise if p.step <= end)
    return kept if len(kept) >= 2 else measurements.noise
