"""From a job to a plan: check, measure, race, decide."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from rightbatch.core.guards import preserved_rng
from rightbatch.core.progress import Phase, Progress
from rightbatch.core.shown_as_text import ShownAsText
from rightbatch.job.job import Job
from rightbatch.measure.energy import find_meter
from rightbatch.measure.measurements import Measurements, NoisePoint
from rightbatch.plan.choice import Choice
from rightbatch.plan.decide import decide
from rightbatch.plan.laws import laws_of, rate_prior
from rightbatch.plan.objectives import Energy, Examples, Objective, Time, no_energy
from rightbatch.plan.options import memory_limit, options_within
from rightbatch.training.any_checkpoint import load_start
from rightbatch.training.plan import Plan
from rightbatch.tuning.candidates import race_settings
from rightbatch.tuning.given_noise import given_noise
from rightbatch.tuning.measure_job import Measured, measure_job
from rightbatch.tuning.measurement_record import Record
from rightbatch.tuning.race import Racing

# Of the memory allowed, for states of lanes that may go on; and bytes of one for each
# parameter: weights and two moments in float32. [assumed]
STATES_SHARE, STATE_BYTES = 0.2, 12

if TYPE_CHECKING:
    from rightbatch.report.page import Page


@dataclass(frozen=True, repr=False)
class Tuning(ShownAsText):
    """The answer: a plan, what was measured, and how one led to the other."""

    plan: Plan
    measurements: Measurements
    choice: Choice

    def __str__(self) -> str:
        from rightbatch.report.answer import answer

        return answer(self.choice, self.plan)

    def __repr__(self) -> str:
        return f"Tuning: {self.plan.verdict}"

    @property
    def report(self) -> Page:
        """The HTML page; ``tuning.report.save("report.html")``."""
        from rightbatch.report.page import Page

        return Page(self.choice, self.plan)


def tune(
    job: Job,
    objective: Objective | None = None,
    *,
    budget_s: float = 60.0,
    deadline_s: float | None = None,
    memory_bytes: float | None = None,
    with_race: bool = True,
    threads: Literal["present", "auto"] = "present",
    start: str | Path | None = None,
    noise: str | Path | Sequence[NoisePoint] | None = None,
    record: Record | None = None,
    progress: Progress | None = None,
) -> Tuning:
    """Find the batch size and learning rate that reach the job's result soonest.

    Args:
        job: What is trained.
        objective: What is to be least; default `Time`.
        budget_s: Seconds that measuring and racing may take together.
        deadline_s: Seconds to the target that must not be exceeded.
        memory_bytes: Bytes a step may take; default 90 % of what is free.
        with_race: Whether to race batches and learning rates; without, nothing is
            decided.
        threads: ``"auto"`` sets torch to one thread if that is faster for this job.
        start: A checkpoint of any trainer, from which the run begins: noise and race
            are then where the run really is, and the plan is for the rest of it. See
            `rightbatch.training.any_checkpoint.load_start` for what is understood.
        noise: What a `NoiseMonitor` saw during a real run, by `NoiseMonitor.save`;
            then none is measured here, and its time goes to the race.
        record: Keeps the measurements while they grow, in a file if it has one.
        progress: Hears of the phases; default: nobody does.

    Raises:
        JobError: The job cannot be measured.
        SettingError: The budget is too small, a limit makes no sense, or the
            checkpoint is of another model, optimizer or batch.
        RunFolderError: Checkpoint or noise cannot be read.
        UnidentifiedError: The measurements do not suffice for a decision.

    Example:
        >>> import rightbatch as rb
        >>> tuning = rb.tune(rb.load_job("digits"), budget_s=2)
        >>> tuning.plan.today
        16
    """
    record, progress = record or Record(), progress or Progress()
    objective = objective or Time()
    if isinstance(objective, Energy) and objective.watts is None:
        meter, why = find_meter(torch.device(job.device or "cpu"))
        if meter is None:
            raise no_energy(why)
    limits: dict[str, Any] = {"deadline_s": deadline_s, "memory_bytes": memory_bytes}
    beginning = None if start is None else load_start(start)
    known = None if noise is None else given_noise(noise)
    ends = time.monotonic() + budget_s
    with preserved_rng():
        measured = measure_job(
            job,
            record,
            progress,
            budget_s=budget_s,
            threads=threads,
            start=beginning,
            noise=known,
        )
        if with_race:
            left_s = measured.run.ranks.first(ends - time.monotonic())
            with record.timed(progress.phase("Race", max(left_s, 0.0))) as phase:
                _race(
                    measured,
                    record,
                    objective,
                    memory_bytes,
                    phase,
                    from_scratch=beginning is None,
                )
            record.share(measured.run.ranks)
        decision = decide(record.measurements, objective, **limits)
    return Tuning(decision.plan, record.measurements, decision.choice)


def _race(
    measured: Measured,
    record: Record,
    objective: Objective,
    memory_bytes: float | None,
    phase: Phase,
    *,
    from_scratch: bool,
) -> None:
    """Race until the phase is over; what was raced is recorded as it comes."""
    measurements, run = record.measurements, measured.run
    laws = laws_of(measurements)
    limit = memory_limit(measurements, memory_bytes)
    options = options_within(laws, measurements.job.examples, limit)
    settings = race_settings(measurements, laws, options)
    job = measurements.job
    by_examples = isinstance(objective, Examples)
    racing = Racing(
        run,
        measured.fresh,
        measured.held_out,
        settings,
        rate_prior(measurements, laws.noise, raced=True),
        metric_s=measured.metric_s,
        unit_costs=[float(s.batch_size) if by_examples else s.step_s for s in settings],
        from_scratch=from_scratch,
        most_states=int(STATES_SHARE * limit / (STATE_BYTES * job.parameters)),
        tick=lambda text: phase.update(text),
    )
    racing.take_in(measurements.metrics, diverged=measurements.diverged)
    racing.search(time.monotonic() + phase.budget_s - phase.elapsed_s)
    race = racing.race()
    if not any(lane.steps for lane in race.lanes[1:]):
        phase.summary = "not run: too few steps fit the budget"
        return
    record.update(race=race)
    reached = sum(lane.end == "target" for lane in race.lanes)
    phase.summary = f"{len(race.lanes)} runs, {reached} to the target"
