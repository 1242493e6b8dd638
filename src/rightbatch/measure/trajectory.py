"""A short real training run, with the gradient's noise measured along the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rightbatch.job.job import Job
from rightbatch.measure.held_out import held_out_loss
from rightbatch.measure.noise import measure_noise
from rightbatch.measure.record import MetricPoint, NoisePoint
from rightbatch.measure.standstill import best_step, has_stalled
from rightbatch.training.training import Training

MOST_POINTS = 12  # at which every other one is dropped and the spacing doubled
FIRST_SPACING = 2  # updates
EVALUATION_GROWTH = 1.08  # in examples seen, as in run/loop.py but coarser [assumed]
LEAST_POINTS = 4
WARM_SHARE = 0.3  # of the run, after which its state is kept for a race [assumed]
GROUP_SHARE = 4  # a group is this fraction of today's batch [assumed]


@dataclass
class Trajectory:
    """What a measuring run has found so far; usable at any moment.

    Attributes:
        points: Noise at evenly spaced steps.
        metrics: The job's ``evaluate`` along the way.
        warm: A state of the run about a third of its way, for a race to start from.
        reached: Whether the target was met.
        stalled: Whether ``evaluate`` stopped improving long before the end.
        seconds: Wall seconds of the training steps alone.
    """

    points: list[NoisePoint]
    metrics: list[MetricPoint]
    warm: Training | None = None
    reached: bool = False
    stalled: bool = False
    seconds: float = 0.0


def measure_trajectory(
    job: Job,
    *,
    budget_s: float,
    held_out: torch.Tensor | None = None,
    micro_batch: int | None = None,
    least_group: int = 1,
    only: torch.Tensor | None = None,
    tick: Callable[[Trajectory, Training], None] = lambda found, training: None,
) -> Trajectory:
    """Train as today until the target, a standstill or the budget; measure noise.

    How long the run will be is not known beforehand. So the spacing starts small and
    doubles whenever there are too many points, every other one being dropped: at any
    moment 6 to 12 evenly spaced points cover all of the run so far.

    Args:
        job: What to train, at its own batch size and learning rate.
        budget_s: Wall seconds for training, measuring and evaluating together.
        held_out: Examples whose loss stands in for the job's ``evaluate``.
        micro_batch: Largest number of examples in memory at once.
        least_group: Fewest examples the model runs on.
        only: Indices of the examples to train on; default all.
        tick: Called after every measurement.

    Raises:
        JobError: Loss or gradient stopped being finite.
    """
    started, found = time.monotonic(), Trajectory([], [])
    generator = torch.Generator().manual_seed(job.seed + 1)
    training, spacing = Training.start(job, only=only), FIRST_SPACING
    batch = min(job.batch_size, job.length)
    group = max(least_group, batch // GROUP_SHARE)
    due, goal = 0, (job.goal if held_out is None else "min")
    kept: list[Training] = []  # the state at every noise point, one third of which last
    # A target met at once still leaves a few points to judge the noise by.
    while not ((found.reached or found.stalled) and len(found.points) >= LEAST_POINTS):
        step_started = time.perf_counter()
        loss = training.step(batch, micro_batch)
        if training.steps % spacing == 0:
            float(loss)  # let the device finish before the clock is read
        found.seconds += time.perf_counter() - step_started
        if training.steps % spacing == 0:
            point = measure_noise(
                training,
                group_size=group,
                micro_batch=min(micro_batch or batch, group),
                generator=generator,
            )
            found.points.append(point)
            kept = _keep_warm(kept, training)
            if len(found.points) >= MOST_POINTS:
                # The later of each pair stays, so the spacing still counts from 0.
                found.points, spacing = found.points[1::2], spacing * 2
            tick(found, training)
        if training.examples >= due and (job.evaluate or held_out is not None):
            if held_out is None:
                value = job.evaluated(training.model)
            else:
                value = held_out_loss(training, held_out)
            found.metrics.append(
                MetricPoint(
                    step=training.steps, examples=training.examples, metric=value
                )
            )
            found.reached |= held_out is None and job.met(value)
            found.stalled = has_stalled(found.metrics, goal)
            due = math.ceil(training.examples * EVALUATION_GROWTH)
        if time.monotonic() - started > budget_s and len(found.points) >= 2:
            break
    end = best_step(found.metrics, goal) if found.stalled else training.steps
    found.warm = _nearest(kept, WARM_SHARE * end)
    return found


def _keep_warm(kept: list[Training], training: Training) -> list[Training]:
    """Keep few states, one of which lies near the warm share of any later end.

    A state is kept when it is twice as far as the last; those that no longer can
    be nearest (too far below the present step, even if it stalled) are let go.
    """
    if not kept or training.steps >= 2 * kept[-1].steps:
        kept = [*kept, training.fork()]
    return [t for t in kept if t.steps >= training.steps / 12]


def _nearest(kept: list[Training], steps: float) -> Training | None:
    return min(kept, key=lambda t: abs(t.steps - steps), default=None)
