"""How far the measuring run came: to its target, to a standstill, or to neither."""

from __future__ import annotations

from rightbatch.measure.record import Measurements, NoisePoint
from rightbatch.measure.standstill import best_step, has_stalled


def steps_to_target(measurements: Measurements) -> int | None:
    """Steps after which the measuring run met the target, if it did."""
    job = measurements.job
    if job.target is None or measurements.metric != "evaluate":
        return None
    for point in measurements.metrics:
        lower = job.goal == "min"
        if point.metric <= job.target if lower else point.metric >= job.target:
            return point.step
    return None


def steps_of_progress(measurements: Measurements) -> int | None:
    """Steps to the target, or to the best value of a run that stood still, or None."""
    steps = steps_to_target(measurements)
    if steps is None and has_stalled(measurements.metrics, measurements.metric_goal):
        return best_step(measurements.metrics, measurements.metric_goal)
    return steps


def points_of_progress(measurements: Measurements) -> tuple[NoisePoint, ...]:
    """The noise points up to the best evaluation, if the run stood still after it."""
    metrics, goal = measurements.metrics, measurements.metric_goal
    if steps_to_target(measurements) is not None or not has_stalled(metrics, goal):
        return measurements.noise
    end = best_step(metrics, goal)
    kept = tuple(p for p in measurements.noise if p.step <= end)
    return kept if len(kept) >= 2 else measurements.noise
