"""A short real training run, with the gradient's noise measured along the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rightbatch.measure.held_out_loss import metric_of
from rightbatch.measure.measurements import MetricPoint, NoisePoint
from rightbatch.measure.noise import measure_noise
from rightbatch.measure.run_progress import best_step, has_stalled
from rightbatch.training.run_state import RunState, Snapshot

MOST_POINTS = 12  # at which every other one is dropped and the spacing doubled
FIRST_SPACING = 2  # updates
EVALUATION_GROWTH = 1.08  # in examples; coarser than training/loop.py [assumed]
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
    warm: Snapshot | None = None
    reached: bool = False
    stalled: bool = False
    seconds: float = 0.0


def measure_trajectory(
    run: RunState,
    *,
    budget_s: float,
    held_out: torch.Tensor | None = None,
    micro_batch: int | None = None,
    least_group: int = 1,
    known: Sequence[NoisePoint] = (),
    tick: Callable[[Trajectory], None] = lambda found: None,
) -> Trajectory:
    """Train as today, measuring noise, until target, end, standstill or budget.

    The run may stand anywhere; how far it goes counts from there. How long it will be
    is not known beforehand. So the spacing starts small and doubles whenever there are
    too many points, every other one being dropped: at any moment 6 to 12 evenly spaced
    points cover all of the run so far.

    Args:
        run: It is trained by the job's own recipe, from wherever it stands.
        budget_s: Wall seconds for training, measuring and evaluating together.
        held_out: Examples whose loss stands in for the job's ``evaluate``.
        micro_batch: Largest number of examples in memory at once on a rank.
        least_group: Fewest examples the model runs on.
        known: Noise of a run like this one; if there is any, none is measured.
        tick: Called after every measurement.

    Raises:
        JobError: Loss or gradient stopped being finite.
    """
    started, found = time.monotonic(), Trajectory(list(known), [])
    first_step, first_example = run.steps, run.examples
    job, spacing, ranks = run.job, FIRST_SPACING, run.ranks.size
    generator = torch.Generator().manual_seed(job.seed + 1)
    batch = min(job.batch_size, job.length)
    group = max(least_group, batch // GROUP_SHARE)
    group = -(-group // ranks) * ranks  # each rank has as many
    end = math.inf if job.run_examples is None else job.run_examples
    due, goal = 0, (job.goal if held_out is None else "min")
    kept: list[Snapshot] = []  # the state at every noise point, one third of which last
    # A target met at once still leaves a few points to judge the noise by.
    least = 0 if known else LEAST_POINTS
    while not ((found.reached or found.stalled) and len(found.points) >= least):
        step_started = time.perf_counter()
        run.split(batch, micro_batch)
        run.step()
        found.seconds += time.perf_counter() - step_started
        if known:
            kept = _keep_warm(kept, run, first_step)
        elif (run.steps - first_step) % spacing == 0:
            point = measure_noise(
                run,
                group_size=group,
                micro_batch=min(micro_batch or batch, group),
                generator=generator,
            )
            found.points.append(point)
            kept = _keep_warm(kept, run, first_step)
            if len(found.points) >= MOST_POINTS:
                # The later of each pair stays, so the spacing still counts from 0.
                found.points, spacing = found.points[1::2], spacing * 2
            tick(found)
        if run.examples >= due and (job.evaluate or held_out is not None):
            value = metric_of(run, held_out)
            found.metrics.append(
                MetricPoint(step=run.steps, examples=run.examples, metric=value)
            )
            found.reached |= held_out is None and job.met(value)
            found.stalled = has_stalled(found.metrics, goal)
            seen = run.examples - first_example
            due = first_example + math.ceil(seen * EVALUATION_GROWTH)
        over = time.monotonic() - started > budget_s or run.examples >= end
        if run.ranks.first(over and len(found.points) >= 2):
            break
    last = best_step(found.metrics, goal) if found.stalled else run.steps
    found.warm = _nearest(kept, first_step + WARM_SHARE * (last - first_step))
    return found


def _keep_warm(kept: list[Snapshot], run: RunState, first_step: int) -> list[Snapshot]:
    """Keep few states, one of which lies near the warm share of any later end.

    A state is kept when it is twice as far as the last; those that no longer can
    be nearest (too far below the present step, even if it stalled) are let go.
    """
    made = run.steps - first_step
    if not kept or made >= 2 * (kept[-1].steps - first_step):
        kept = [*kept, run.snapshot()]
    return [t for t in kept if t.steps - first_step >= made / 12]


def _nearest(kept: list[Snapshot], steps: float) -> Snapshot | None:
    return min(kept, key=lambda t: abs(t.steps - steps), default=None)
