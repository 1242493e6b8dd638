"""From a job to a plan: check, measure, decide, race, decide again."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from rightbatch.core.guards import preserved_rng
from rightbatch.core.progress import Phase, Progress
from rightbatch.job.job import Job
from rightbatch.measure.energy import find_meter
from rightbatch.measure.measurements import Measurements, Race
from rightbatch.measure.run_progress import steps_of_progress
from rightbatch.plan.choice import Choice
from rightbatch.plan.decide import decide
from rightbatch.plan.objectives import Energy, Objective, no_energy
from rightbatch.training.plan import Plan
from rightbatch.tuning.candidates import race_entries
from rightbatch.tuning.measure_job import Measured, measure_job
from rightbatch.tuning.measurement_record import Record
from rightbatch.tuning.race import Clock, race

if TYPE_CHECKING:
    from rightbatch.report.page import Page

RACE_LEAST = 0.1  # of the budget must be left for a race [assumed]


@dataclass(frozen=True, repr=False)
class Tuning:
    """The answer: a plan, what was measured, and how one led to the other."""

    plan: Plan
    measurements: Measurements
    choice: Choice

    def __repr__(self) -> str:
        return f"Tuning({self.plan.verdict})"

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
        with_race: Whether to race the plan against today's batch.
        threads: ``"auto"`` sets torch to one thread if that is faster for this job.
        record: Keeps the measurements while they grow, in a file if it has one.
        progress: Hears of the phases; default: nobody does.

    Raises:
        JobError: The job cannot be measured.
        SettingError: The budget is too small, or a limit makes no sense.
        UnidentifiedError: The measurements do not suffice for a decision.

    Example:
        >>> import rightbatch as rb
        >>> tuning = rb.tune(rb.load_job("digits"), budget_s=2)
        >>> tuning.plan.today
        16
    """
    record, progress = record or Record(), progress or Progress()
    if isinstance(objective, Energy) and objective.watts is None:
        meter, why = find_meter(torch.device(job.device or "cpu"))
        if meter is None:
            raise no_energy(why)
    limits: dict[str, Any] = {"deadline_s": deadline_s, "memory_bytes": memory_bytes}
    ends = time.monotonic() + budget_s
    with preserved_rng():
        measured = measure_job(
            job, record, progress, budget_s=budget_s, threads=threads
        )
        decision = decide(record.measurements, objective, **limits)
        left_s = measured.run.ranks.first(ends - time.monotonic())
        if with_race and left_s <= RACE_LEAST * budget_s:
            with progress.phase("Race", 0.0) as phase:
                phase.summary = "not run: measuring took the budget"
        elif with_race:
            with record.timed(progress.phase("Race", left_s)) as phase:
                record.update(race=_race(measured, decision.choice, phase))
            record.share(measured.run.ranks)
            decision = decide(record.measurements, objective, **limits)
    return Tuning(decision.plan, record.measurements, decision.choice)


def _race(measured: Measured, choice: Choice, phase: Phase) -> Race | None:
    measurements, job = choice.measurements, measured.run.job

    def tick(number: int, rounds: int, role: str) -> None:
        phase.update(f"round {number} of {rounds}: {role}")

    reached = steps_of_progress(measurements)
    to_target = math.inf
    if reached is not None:
        today_s = choice.laws.time.seconds(
            min(job.batch_size, choice.laws.time.largest)
        )
        to_target = reached * today_s
    contention = measurements.contention
    busy = contention is not None and contention.busy
    clock: Clock = time.process_time if busy else time.perf_counter
    result = race(
        measured.run,
        measured.fresh,
        race_entries(choice),
        budget_s=phase.budget_s,
        held_out=measured.held_out,
        to_target_s=to_target,
        clock=clock,
        tick=tick,
    )
    phase.summary = "not run: too few steps fit the budget"
    if result is not None:
        best = max(result.candidates, key=lambda candidate: candidate.speedup.value)
        phase.summary = (
            f"{result.rounds} rounds, first: B = {best.batch_size} ({best.role})"
        )
    return result
