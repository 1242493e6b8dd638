"""Whether a run has stopped improving, read from its evaluations."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rightbatch.measure.record import MetricPoint

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
