"""A short real training run, with the gradient's noise measured along the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from rightbatch.core.deadline import Deadline
from rightbatch.core.errors import NotFiniteError
from rightbatch.measure.held_out_loss import metric_of
from rightbatch.measure.measurements import MetricPoint, NoisePoint
from rightbatch.measure.noise import (
    comparison_passes,
    group_count_within,
    measure_noise,
)
from rightbatch.measure.run_progress import has_stalled
from rightbatch.measure.time import wait_for
from rightbatch.training.run_state import RunState

MOST_POINTS = 12  # at which every other one is dropped and the spacing doubled
FIRST_SPACING = 2  # updates
EVALUATION_GROWTH = 1.08  # in examples; coarser than training/loop.py [assumed]
LEAST_POINTS = 4
GROUP_SHARE = 4  # a group is this fraction of today's batch [assumed]
# Shares of the time [assumed]: the rest is for training steps.
NOISE_SHARE, METRIC_SHARE = 0.5, 0.25
# For the sake of short runs they may run ahead for so much of the time, or so long.
AHEAD, AHEAD_S = 0.2, 0.3
POINT_SHARE = 0.1  # one point of noise is made of fewer groups to stay below [assumed]
COMPARING = 1.5  # comparing gradients costs so much on top of making them [assumed]
TOLD_S = 1.0  # least seconds between two things told


@dataclass
class Trajectory:
    """What a measuring run has found so far; usable at any moment.

    Attributes:
        points: Noise at about evenly spaced steps; none where there was no time for it.
        metrics: The job's ``evaluate`` along the way, at every step to begin with.
        reached: Whether the target was met.
        stalled: Whether ``evaluate`` stopped improving long before the end.
        diverged: Whether loss, gradient or metric stopped being finite; points and
            metrics are from before.
        metric_s: Least wall seconds of one evaluation; None: there was none.
    """

    points: list[NoisePoint]
    metrics: list[MetricPoint]
    reached: bool = False
    stalled: bool = False
    diverged: bool = False
    metric_s: float | None = None


@dataclass
class _Share:
    """A part of the work that is held to a share of the time."""

    share: float
    deadline: Deadline
    next_s: float = 0.0  # what the next of it is predicted to take
    spent_s: float = 0.0

    def allows(self) -> bool:
        """Whether the next of it fits, in time and in its share."""
        budget_s = self.deadline.budget_s
        ahead_s = max(AHEAD * budget_s, min(AHEAD_S, budget_s))
        passed = (self.deadline.elapsed_s + self.next_s) / budget_s
        fair_s = self.share * (ahead_s + passed * (budget_s - ahead_s))
        within = self.spent_s + self.next_s <= fair_s
        return within and self.deadline.allows(self.next_s)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Do the next of it."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.next_s = time.perf_counter() - started
            self.spent_s += self.next_s


class _NoiseAlong:
    """Points of noise, about evenly spaced, of a run whose length is not known.

    The spacing starts small and doubles whenever there are too many points, every other
    one being dropped. A point that would take more than its share is left out.

    Args:
        run: It stays where it is.
        share: The time for it.
        least_group: Fewest examples the model runs on.
        micro_batch: Largest number of examples in memory at once on a rank.
    """

    def __init__(
        self, run: RunState, share: _Share, least_group: int, micro_batch: int
    ) -> None:
        self.run, self.share, self.micro_batch = run, share, micro_batch
        self.batch, ranks = min(run.job.batch_size, run.job.length), run.ranks.size
        group = max(least_group, self.batch // GROUP_SHARE)
        self.group = -(-group // ranks) * ranks  # each rank has as many
        self.generator = torch.Generator().manual_seed(run.job.seed + 1)
        self.points: list[NoisePoint] = []
        self.first_step = run.steps
        self.spacing, self.group_s = FIRST_SPACING, 0.0

    def visit(self, step_s: float) -> None:
        """Measure where the run stands, if a point is due there, and fits.

        Args:
            step_s: What a step of the run takes, by which the first is predicted.
        """
        if (self.run.steps - self.first_step) % self.spacing:
            return
        first = self.run.ranks.first
        group_s = self.group_s or COMPARING * step_s * self.group / self.batch
        budget_s = POINT_SHARE * self.share.deadline.budget_s
        groups = int(first(group_count_within(self.run, group_s, budget_s)))
        passes = comparison_passes(self.run, groups)
        self.share.next_s = passes * group_s
        if not first(self.share.allows()):
            if not self.points:
                self.spacing *= 2
            return
        with self.share.timed():
            point = measure_noise(
                self.run,
                group_size=self.group,
                micro_batch=min(self.micro_batch, self.group),
                groups=groups,
                generator=self.generator,
            )
        self.group_s = self.share.next_s / passes
        self.points.append(point)
        if len(self.points) >= MOST_POINTS:
            # The later of each pair stays, so the spacing still counts from 0.
            self.points, self.spacing = self.points[1::2], 2 * self.spacing


def measure_trajectory(
    run: RunState,
    *,
    budget_s: float,
    held_out: torch.Tensor | None = None,
    micro_batch: int | None = None,
    least_group: int = 1,
    known: Sequence[NoisePoint] = (),
    step_s: float = 0.0,
    metric_s: float = 0.0,
    tick: Callable[[Trajectory], None] = lambda found: None,
) -> Trajectory:
    """Train as today, measuring noise, until target, end, standstill or budget.

    The run may stand anywhere; how far it goes counts from there. At any moment of a
    long run, 6 to 12 points of noise, about evenly spaced, cover all of it so far;
    where steps are long for the budget there are fewer, or none. What a step, a point
    or an evaluation will take is predicted from the last one, and none is begun that
    would not end in time.

    Args:
        run: It is trained by the job's own recipe, from wherever it stands.
        budget_s: Wall seconds for training, measuring and evaluating together.
        held_out: Examples whose loss stands in for the job's ``evaluate``.
        micro_batch: Largest number of examples in memory at once on a rank.
        least_group: Fewest examples the model runs on.
        known: Noise of a run like this one; if there is any, none is measured.
        step_s: What the first step is predicted to take.
        metric_s: What the first evaluation is predicted to take.
        tick: Called every second or so with what is known by then.

    Raises:
        JobError: The job's own code failed.
    """
    deadline, found = Deadline.within(budget_s), Trajectory(list(known), [])
    batch, first = min(run.job.batch_size, run.job.length), run.ranks.first
    metric = _Share(METRIC_SHARE, deadline, metric_s)
    noise = _NoiseAlong(
        run, _Share(NOISE_SHARE, deadline), least_group, micro_batch or batch
    )
    evaluates = run.job.evaluate is not None or held_out is not None
    length = math.inf if run.job.run_examples is None else run.job.run_examples
    begun, due, told = run.examples, 0, time.monotonic()
    while first(deadline.allows(step_s)):
        try:
            step_s = _train_step(run, batch, micro_batch)
            over = run.examples >= length
            if evaluates and (over or run.examples >= due) and first(metric.allows()):
                with metric.timed():
                    _evaluate(run, held_out, found)
                due = begun + math.ceil((run.examples - begun) * EVALUATION_GROWTH)
            ended = found.reached or found.stalled or over
            # A target met at once still leaves a few points to judge the noise by.
            enough = len(noise.points) >= LEAST_POINTS or noise.spacing > FIRST_SPACING
            if found.diverged or over or (ended and (known or enough)):
                break
            if not known:
                noise.visit(step_s)
                found.points = noise.points
        except NotFiniteError:
            found.diverged = True
            break
        if time.monotonic() - told > TOLD_S:
            tick(found)
            told = time.monotonic()
    return found


def _train_step(run: RunState, batch: int, micro_batch: int | None) -> float:
    """One step as today; its wall seconds."""
    started = time.perf_counter()
    run.split(batch, micro_batch)
    run.step()
    wait_for(run.device)
    return time.perf_counter() - started


def _evaluate(run: RunState, held_out: torch.Tensor | None, found: Trajectory) -> None:
    """Add the metric where the run stands, and what it says of the run."""
    began = time.perf_counter()
    value = metric_of(run, held_out)
    wall_s = time.perf_counter() - began
    found.metric_s = min(found.metric_s or math.inf, wall_s)
    if not math.isfinite(value):
        found.diverged = True
        return
    found.metrics.append(
        MetricPoint(step=run.steps, examples=run.examples, metric=value)
    )
    found.reached |= held_out is None and run.job.met(value)
    goal = run.job.goal if held_out is None else "min"
    found.stalled = has_stalled(found.metrics, goal)
