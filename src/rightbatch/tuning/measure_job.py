"""Measuring a job: check, cost, noise, each saved as soon as it is known."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from typing import Literal

import torch

from rightbatch.core.errors import SettingError
from rightbatch.core.estimate import Estimate
from rightbatch.core.findings import Finding
from rightbatch.core.guards import preserved_rng
from rightbatch.core.progress import Phase, Progress
from rightbatch.core.units import show_number, show_seconds
from rightbatch.data.order.held_out import hold_out
from rightbatch.fit.critical_batch import critical_from_noise
from rightbatch.job.job import Job
from rightbatch.lint.linter import check
from rightbatch.measure.energy import find_meter, measure_energy
from rightbatch.measure.facts import job_facts
from rightbatch.measure.hardware import machine
from rightbatch.measure.record import TimePoint
from rightbatch.measure.threads import pick_threads
from rightbatch.measure.time import measure_times
from rightbatch.measure.trajectory import Trajectory, measure_trajectory
from rightbatch.memory.peak import measure_memory
from rightbatch.memory.points import MemoryPoint
from rightbatch.training.training import Training
from rightbatch.tuning.record import Record

# Shares of the budget [assumed]; what a phase leaves over goes to the race.
TIME_SHARE, NOISE_SHARE = 0.15, 0.35
LEAST_BUDGET_S = 1.0
CHECK_S = 3.0  # that the checks usually take [assumed]
ENERGY_S = 6.0  # of the cost's share; below, a dozen windows of a second take too much
# ``evaluate`` is called along the way if one call takes at most this share of the
# budget; a race makes some hundred calls [assumed].
EVALUATE_SHARE = 1 / 500


@dataclass(frozen=True)
class Start:
    """Where a race starts from.

    Attributes:
        warm: A warmed-up state of the measuring run.
        held_out: Examples left aside to compare by; None: the job's ``evaluate``.
    """

    warm: Training
    held_out: torch.Tensor | None


def measure_job(
    job: Job,
    record: Record,
    progress: Progress,
    *,
    budget_s: float,
    threads: Literal["present", "auto"] = "present",
) -> Start | None:
    """Check a job, then measure its time, memory and noise.

    Args:
        job: What is measured.
        record: Gets everything that is measured, as soon as it is known.
        progress: Hears of three phases.
        budget_s: The whole budget of a tuning; measuring takes about half.
        threads: ``"auto"`` sets torch to one thread if that is faster for this job.

    Returns:
        Where a race can start from; None where the run was too short for one.

    Raises:
        JobError: The job cannot be measured.
        SettingError: The budget is below one second, or not a number.
    """
    if not LEAST_BUDGET_S <= budget_s < math.inf:
        raise SettingError(
            f"the budget must be at least {LEAST_BUDGET_S:g} second",
            seen=f"{budget_s:g} s",
            fix="--budget 60",
        )
    time_s, noise_s = TIME_SHARE * budget_s, NOISE_SHARE * budget_s
    with preserved_rng():
        with record.timed(progress.phase("Check the job", CHECK_S)) as phase:
            training = _check(job, record, phase, threads)
        with record.timed(progress.phase("Time and memory", time_s)) as phase:
            _measure_cost(job, training, record, phase)
        with record.timed(progress.phase("Gradient noise", noise_s)) as phase:
            return _measure_noise(job, record, phase, EVALUATE_SHARE * budget_s)


def _check(
    job: Job, record: Record, phase: Phase, threads: Literal["present", "auto"]
) -> Training:
    findings = check(job)
    findings.raise_errors()
    note = ""
    picked, seconds = pick_threads(job)
    if picked != torch.get_num_threads():
        one, many = (show_seconds(s) for s in seconds.values())
        if threads == "auto":
            torch.set_num_threads(picked)
            note = f", 1 thread ({one} a step; {max(seconds)}: {many})"
        else:
            warnings.warn(
                f"a step takes {one} with one thread, {many} with "
                f"{max(seconds)}: call torch.set_num_threads(1), or pass "
                "threads='auto'",
                stacklevel=4,
            )
    training = Training.start(job)
    record.start(
        job_facts(training, record.spec),
        machine(training.device.type),
        findings.items,
    )
    kinds = f"{len(findings.warnings)} warnings" if findings.warnings else "ok"
    phase.summary = f"{kinds}: {findings.rules} rules{note}"
    return training


def _measure_cost(job: Job, training: Training, record: Record, phase: Phase) -> None:
    budget_s = phase.budget_s

    def tick(size: int, visits: int) -> None:
        phase.update(f"round {visits}, B = {size}")

    def keep(points: tuple[TimePoint, ...]) -> None:
        record.update(times=points)

    times, contention, notes = measure_times(
        job, budget_s=budget_s, tick=tick, keep=keep
    )
    extra = tuple(Finding(code="RB108", severity="note", what=n) for n in notes)
    record.update(
        times=times,
        contention=contention,
        findings=(*record.measurements.findings, *extra),
    )
    sizes = [p.micro_batch for p in times]
    training.step(min(2, job.length))  # makes the optimizer's state
    # The largest first: the law is the line through the two largest.
    memory: list[MemoryPoint] = []
    for size in reversed(sizes):
        memory.insert(0, measure_memory(training, size))
        if len(memory) >= 3 and phase.elapsed_s > 1.5 * budget_s:
            break
    record.update(memory=tuple(memory))
    meter, _ = find_meter(training.device)
    if meter is not None and budget_s >= ENERGY_S:
        phase.update("energy")
        record.update(energy=measure_energy(training, sizes, meter))
    busy = ", machine busy: CPU time is used" if contention.busy else ""
    phase.summary = f"{len(times)} sizes, {sizes[0]} to {sizes[-1]}{busy}"


def _measure_noise(
    job: Job, record: Record, phase: Phase, longest_evaluate_s: float
) -> Start | None:
    def tick(found: Trajectory, training: Training) -> None:
        record.update(noise=tuple(found.points), metrics=tuple(found.metrics))
        phase.update(f"step {training.steps}: {_running(found, job)}")

    sizes = [p.micro_batch for p in record.measurements.times]
    cost = _evaluate_seconds(job)
    record.update(evaluate_s=cost)
    only = held_out = None
    if cost is None or cost > longest_evaluate_s:
        only, held_out = hold_out(job.length, job.seed)
        record.update(metric="held-out loss")
    found = measure_trajectory(
        job,
        budget_s=phase.budget_s,
        held_out=held_out,
        micro_batch=max(sizes),
        least_group=min(sizes),
        only=only,
        tick=tick,
    )
    record.update(noise=tuple(found.points), metrics=tuple(found.metrics))
    end = (
        ", at target" if found.reached else ", at a standstill" if found.stalled else ""
    )
    phase.summary = f"{_running(found, job)}, {len(found.points)} points{end}"
    return Start(found.warm, held_out) if found.warm is not None else None


def _running(found: Trajectory, job: Job) -> str:
    if len(found.points) < 2:
        return str(found.points[-1].noise_scale)
    law = critical_from_noise(found.points, job.batch_size)
    return f"B_crit {short(law.critical_batch)}"


def short(e: Estimate) -> str:
    """An estimate in few characters."""
    high = show_number(e.high) if math.isfinite(e.high) else "?"
    return f"{show_number(e.value)} ({show_number(e.low)} to {high})"


def _evaluate_seconds(job: Job) -> float | None:
    """How long one call of ``evaluate`` takes: the least of three short ones."""
    if job.evaluate is None:
        return None
    model, times = job.make_model(), []
    while len(times) < 3 and sum(times) < 1.0:
        started = time.monotonic()
        job.evaluated(model)
        times.append(time.monotonic() - started)
    return min(times)
