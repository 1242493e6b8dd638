"""A worker of a study: trains one trial after another, as lanes of one race."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rightbatch.core.errors import SettingError
from rightbatch.job.job import Job
from rightbatch.measure.held_out_loss import metric_of
from rightbatch.measure.measurements import Lane, Measurements, Race
from rightbatch.plan.laws import laws_of, rate_prior
from rightbatch.plan.options import memory_limit, options_within
from rightbatch.sweep.journal import Journal
from rightbatch.sweep.proposals import longest_s, proposal
from rightbatch.training.interrupt import Interrupt
from rightbatch.training.run_folder import JOURNAL, MEASUREMENTS
from rightbatch.training.run_state import RunState
from rightbatch.tuning.candidates import race_settings, setting_at
from rightbatch.tuning.lane import LaneRun, Setting, train_lane
from rightbatch.tuning.race import LEAST_STEPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What every worker of a study is told.

    Attributes:
        folder: Absolute, the same for all.
        trials: How many are to be begun, over all workers.
        workers: How many of them there are.
        ends: When to stop, by the clock of the day; None: never.
    """

    folder: Path
    trials: int
    workers: int
    ends: float | None

    @property
    def late(self) -> bool:
        """Whether time is up."""
        return self.ends is not None and time.time() >= self.ends


class Trials:
    """One run of the job, and everything that may be tried with it.

    Args:
        job: Has a target.
        measurements: Of the job, without a race.
        workers: Who share the memory that was free.
    """

    def __init__(self, job: Job, measurements: Measurements, workers: int) -> None:
        self.measurements, self.laws = measurements, laws_of(measurements)
        facts = measurements.job
        group = facts.batch_size if facts.grouped else None
        self.run = RunState.start(job, alone=True, group=group)
        self.start = self.run.snapshot()
        self.start_metric = metric_of(self.run, None)
        self.prior = rate_prior(measurements, self.laws.noise, raced=True)
        self.limit = memory_limit(measurements, None) / workers
        options = options_within(self.laws, facts.examples, self.limit)
        self.settings = race_settings(measurements, self.laws, options)
        self.measuring = self._measuring_run()
        least_s = LEAST_STEPS * self.settings[0].step_s
        self.least_s = max([least_s, *(lane.seconds for lane in self.measuring)])

    def _measuring_run(self) -> tuple[Lane, ...]:
        """The run in which the noise was measured is a lane of today's setting too."""
        today, metrics = self.settings[0], self.measurements.metrics
        if not metrics or self.measurements.diverged:
            return ()
        lane = LaneRun(today, self.run.job.seed)
        lane.steps = [point.step for point in metrics]
        lane.metrics = [point.metric for point in metrics]
        lane.end = "target" if self.run.job.met(lane.metrics[-1]) else "time"
        return (lane.lane(),)

    def race(self, lanes: tuple[Lane, ...]) -> Race:
        """Lanes with the start and the target that they have in common."""
        job = self.run.job
        return Race(
            metric="evaluate",
            goal=job.goal,
            start=self.start_metric,
            target=job.target,
            lanes=(*self.measuring, *lanes),
            seconds=sum(lane.seconds for lane in lanes),
        )

    def propose(self, lanes: tuple[Lane, ...], number: int) -> tuple[int, float]:
        """Batch and rate of a trial."""
        setting = proposal(self.race(lanes), self.prior, self.settings, number)
        return setting.batch_size, setting.lr

    def setting(self, batch_size: int, lr: float) -> Setting:
        """What a batch and rate are trained with.

        Raises:
            SettingError: The batch does not fit.
        """
        splits = {s.batch_size: s.micro_batch for s in self.settings}
        if batch_size not in splits:
            split = self.laws.split(batch_size, self.limit)
            if split is None or batch_size > self.run.job.length:
                raise SettingError(
                    "the plan's batch cannot be tried here",
                    seen=f"batch {batch_size:,} of {self.run.job.length:,} examples",
                    fix="a plan of this job, made on a machine like this one",
                )
            splits[batch_size] = split[0]
        micro_batch = splits[batch_size]
        return setting_at(self.measurements, self.laws, batch_size, micro_batch, lr)

    def train(
        self,
        setting: Setting,
        number: int,
        seconds: float,
        late: Callable[[], bool] = lambda: False,
    ) -> Lane:
        """One lane, to the target, or for so many seconds by the law of step time.

        Args:
            setting: What it trains with.
            number: How many have trained with it before: each has weights and a stream
                of its own, the same for all settings.
            seconds: At the most.
            late: Whether there is no more time.
        """
        lane = LaneRun(setting, self.run.job.seed + 1000 * number)
        start = self.start
        if number:
            start = self.run.with_other_weights(start, lane.seed)
        train_lane(
            self.run,
            start,
            lane,
            max(seconds, setting.step_s),
            held_out=None,
            metric_s=self.measurements.metric_s or 0.0,
            met=self.run.job.met,
            late=late,
        )
        return lane.lane()


def work(
    name: str,
    orders: Orders,
    load: Callable[[], Job],
    tick: Callable[[], None] = lambda: None,
    trials: Trials | None = None,
) -> bool:
    """Train trials until there are enough; what it had begun before it goes on with.

    Args:
        name: Of the worker; no other that lives has it.
        orders: What all are told.
        load: Makes the job, where ``trials`` are not given.
        tick: Called before every trial.
        trials: In the process that has measured the job.

    Returns:
        Whether it was interrupted.
    """
    if trials is None:
        measurements = Measurements.load(orders.folder / MEASUREMENTS)
        torch.set_num_threads(measurements.machine.threads)
        trials = Trials(load(), replace(measurements, race=None), orders.workers)
    journal = Journal(orders.folder / JOURNAL, trials.propose)
    journal.take_back(name)
    parent = multiprocessing.parent_process()
    with Interrupt() as interrupt:

        def late() -> bool:
            orphan = parent is not None and not parent.is_alive()
            return interrupt.asked or orphan or orders.late

        while journal.begun < orders.trials and not late():
            lanes = journal.lanes
            tick()
            trial, repeat = journal.ask(name)
            pair = trial.params["batch_size"], trial.params["lr"]
            race, setting = trials.race(lanes), trials.setting(*pair)
            repeat += sum((x.batch_size, x.lr) == pair for x in trials.measuring)
            most_s = longest_s(race, trials.least_s)
            lane = trials.train(setting, repeat, most_s, late)
            if late() and lane.end == "time":
                journal.take_back(name)
            else:
                journal.tell(trial, lane)
    return interrupt.asked
