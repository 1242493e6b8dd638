"""One lane of the race: a candidate that trains from the common start, and goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from rightbatch.core.errors import JobError, NotFiniteError
from rightbatch.core.torch_private import is_out_of_memory
from rightbatch.measure.held_out_loss import metric_of
from rightbatch.measure.measurements import Lane
from rightbatch.schedules.scaling import Scaling, apply_scaling, multiply_rates
from rightbatch.training.run_state import RunState, Snapshot

# Evaluations are spaced by this growth in steps, from this many of today's batches on.
GROWTH, FIRST = 1.08, 4  # [assumed]
EVALUATE_SHARE = 0.2  # of a lane's time, at most, goes to evaluating [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a candidate trains with.

    Attributes:
        batch_size: Examples per step.
        micro_batch: Examples in memory at once, over all ranks.
        lr: Learning rate of the first param group.
        lr_factor: ``lr`` over what the scaling makes of today's.
        scaling: How the optimizer's numbers follow to the batch.
        step_s: Seconds of a step by the law of step time.
        stretch: How many times as many examples a run takes as today's, as expected:
            a schedule of the learning rate keeps its shape over them.
    """

    batch_size: int
    micro_batch: int
    lr: float
    lr_factor: float
    scaling: Scaling
    step_s: float
    stretch: float = 1.0


@dataclass
class LaneRun:
    """A lane under way; `lane` is what has come of it.

    Attributes:
        setting: What it trains with.
        seed: Of its stream.
        steps: Updates made at each evaluation.
        metrics: What was found there.
        end: As in `Lane`.
        state: Where it stands, if it may go on; None: at the start.
    """

    setting: Setting
    seed: int
    steps: list[int] = field(default_factory=list)
    metrics: list[float] = field(default_factory=list)
    end: Literal["target", "time", "diverged", "failed"] = "time"
    state: Snapshot | None = None

    @property
    def seconds(self) -> float:
        """How long it has trained, by the law of step time."""
        return self.steps[-1] * self.setting.step_s if self.steps else 0.0

    @property
    def open(self) -> bool:
        """Whether it may go on."""
        return self.end == "time" and (self.state is not None or not self.steps)

    def lane(self) -> Lane:
        """As a plain value."""
        return Lane(
            batch_size=self.setting.batch_size,
            micro_batch=self.setting.micro_batch,
            lr=self.setting.lr,
            seed=self.seed,
            step_s=self.setting.step_s,
            steps=tuple(self.steps),
            metrics=tuple(self.metrics),
            end=self.end,
        )


def set_up(run: RunState, setting: Setting) -> None:
    """Give a run at today's numbers those of a candidate."""
    apply_scaling(run.optimizer, setting.scaling)
    multiply_rates(run.optimizer, setting.lr_factor)
    if run.rate is not None:
        run.follow(run.rate.stretched(setting.stretch))


def train_lane(
    run: RunState,
    start: Snapshot,
    lane: LaneRun,
    seconds: float,
    *,
    held_out: torch.Tensor | None,
    metric_s: float,
    met: Callable[[float], bool],
    late: Callable[[], bool] = lambda: False,
) -> None:
    """Train a lane on, until so many seconds of it by the law of step time.

    It ends before where the target is met and where it diverges. What a lane costs in
    truth is for ``late`` to judge: it is asked after every step, and stops the lane
    where it stands. Collective.

    Args:
        run: Is moved to the lane's state and on; left somewhere else.
        start: The common start.
        lane: The lane; changed in place, its ``state`` too.
        seconds: Since the start.
        held_out: Examples to compare by their loss; None for the job's ``evaluate``.
        metric_s: Seconds of one evaluation.
        met: Whether a metric is as good as the race's target.
        late: Whether there is no more time.
    """
    setting, job = lane.setting, run.job
    if lane.state is None:
        run.rewind(start, seed=lane.seed)
        set_up(run, setting)
    else:
        run.rewind(lane.state)
    lane.state = None
    run.split(setting.batch_size, -(-setting.micro_batch // run.ranks.size))
    done = lane.steps[-1] if lane.steps else 0
    last = max(1, math.floor(seconds / setting.step_s + 1e-9))
    apart = metric_s / EVALUATE_SHARE / setting.step_s  # steps between evaluations
    first = -(-FIRST * job.batch_size // setting.batch_size)
    due = max(first, done + 1)
    stopped = False
    while done < last and lane.end == "time" and not stopped:
        try:
            done += 1
            run.step()
            stopped = late()
            if done < min(due, last) and not stopped:
                continue
            due = math.ceil(max(done * GROWTH, done + apart))
            value = metric_of(run, held_out)
        except NotFiniteError:
            value = math.nan
        except (JobError, RuntimeError, MemoryError) as error:
            if not isinstance(error, JobError) and not is_out_of_memory(error):
                raise
            lane.end = "failed"  # the machine, or the job's code, at this batch
            break
        lane.steps.append(done)
        lane.metrics.append(value)
        if not math.isfinite(value):
            lane.end = "diverged"
            break
        if met(value):
            lane.end = "target"
    if lane.end == "time":
        lane.state = run.snapshot()
