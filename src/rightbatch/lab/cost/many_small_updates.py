"""Many small, fairly exact updates get further than one heavy one in equal time."""

from __future__ import annotations

import statistics

from rightbatch.core.estimate import Estimate
from rightbatch.job.job import Job
from rightbatch.lab.check import at_least, at_most
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.cost.cpu_time import cpu_seconds, step_of
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of
from rightbatch.lab.training_runs import Curve, digits_job, started, trained

SMALL = 32
RATES = {1: (0.003, 0.01), SMALL: (0.05, 0.1), 0: (0.1, 0.3, 1.0)}  # 0: the whole set


def best_run(job: Job, batch: int, rates: tuple[float, ...], steps: int) -> Curve:
    """Of one run at each rate, that with the lowest held-out loss at the end."""
    every = max(steps // 12, 1)
    curves = [
        trained(job, batch_size=batch, lr=lr, steps=steps, every=every) for lr in rates
    ]
    ended = [c for c in curves if not c.diverged]
    return min(ended, key=lambda curve: curve.values[-1])
