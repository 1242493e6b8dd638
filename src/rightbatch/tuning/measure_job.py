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
from rightbatch.measure.measurements import TimePoint
from rightbatch.measure.threads import pick_threads
from rightbatch.measure.time import measure_times
from rightbatch.measure.trajectory import Trajectory, measure_trajectory
from rightbatch.memory.peak import measure_memory
from rightbatch.memory.points import MemoryPoint
from rightbatch.training.any_checkpoint import Start
from rightbatch.training.run_state import RunState, Snapshot
from rightbatch.training.start_from import begin_from
from rightbatch.tuning.given_noise import GivenNoise
from rightbatch.tuning.measurement_record import Record

# Shares of the budget [assumed]; what a phase leaves over goes to the race.
TIME_SHARE, NOISE_SHARE = 0.15, 0.35
# Of the budget, where the noise is known: training for a state to race from. [assumed]
WARMING_SHARE = 0.1
LEAST_BUDGET_S = 1.0
CHECK_S = 3.0  # that the checks usually take [assumed]
ENERGY_S = 6.0  # of the cost's share; below, a dozen windows of a second take too much
# ``evaluate`` is called along the way if one call takes at most this share of the
# budget; a race makes some hundred calls [assumed].
EVALUATE_SHARE = 1 / 500


@dataclass(frozen=True)
class Measured:
    """The run that was measured, and where a race can start from.

    Attributes:
        run: It goes on to race.
        fresh: Its initial state, from which all race.
        held_out: Examples left aside to compare by; None: the job's ``evaluate``.
        metric_s: Seconds of one such comparison.
    """

    run: RunState
    fresh: Snapshot
    held_out: torch.Tensor | None
    metric_s: float


def measure_job(
    job: Job,
    record: Record,
    progress: Progress,
    *,
    budget_s: float,
    threads: Literal["present", "auto"] = "present",
    start: Start | None = None,
    noise: GivenNoise | None = None,
) -> Measured:
    """Check a job, then measure its time, memory and noise.

    Under torchrun on all ranks together; then the first one's record counts.

    Args:
        job: What is measured.
        record: Gets everything that is measured, as soon as it is known.
        progress: Hears of three phases.
        budget_s: The whole budget of a tuning; measuring takes about half.
        threads: ``"auto"`` sets torch to one thread if that is faster for this job.
        start: Where the run begins; None: at the job's initial weights.
        noise: Known from a real run; then none is measured here.

    Returns:
        The run, and where a race can start from.

    Raises:
        JobError: The job cannot be measured.
        SettingError: The budget is below one second, or not a number; or the start is
            of another model, optimizer or batch.
    """
    if not LEAST_BUDGET_S <= budget_s < math.inf:
        raise SettingError(
            f"the budget must be at least {LEAST_BUDGET_S:g} second",
            seen=f"{budget_s:g} s",
            fix="--budget 60",
        )
    time_s, noise_s = TIME_SHARE * budget_s, NOISE_SHARE * budget_s
    noise_s = noise_s if noise is None else WARMING_SHARE * budget_s
    with preserved_rng():
        with record.timed(progress.phase("Check the job", CHECK_S)) as phase:
            findings = check(job)
            findings.raise_errors()
            run = RunState.start(job)
            notes = () if start is None else begin_from(run, start)
            notes += () if noise is None else noise.findings(run)
            fresh = run.snapshot()
            note = _set_threads(run, threads)
            run.rewind(fresh)
            record.start(
                job_facts(run, record.spec, findings.coupled),
                machine(run.device.type, run.ranks.size),
                (*findings.items, *notes),
            )
            if noise is not None:
                record.update(noise=noise.points, noise_source=noise.source)
            kinds = f"{len(findings.warnings)} warnings" if findings.warnings else "ok"
            phase.summary = f"{kinds}: {findings.rules} rules{note}"
        with record.timed(progress.phase("Time and memory", time_s)) as phase:
            _measure_cost(run, fresh, record, phase)
        with record.timed(progress.phase("Gradient noise", noise_s)) as phase:
            run.rewind(fresh)
            measured = _measure_noise(
                run, fresh, record, phase, EVALUATE_SHARE * budget_s, noise
            )
        record.share(run.ranks)
    return measured


def _set_threads(run: RunState, threads: Literal["present", "auto"]) -> str:
    """Time one thread against many; set the faster, or warn. Says what was done."""
    picked, seconds = pick_threads(run)
    if picked == torch.get_num_threads():
        return ""
    one, many = (show_seconds(s) for s in seconds.values())
    if threads == "auto":
        torch.set_num_threads(picked)
        return f", 1 thread ({one} a step; {max(seconds)}: {many})"
    warnings.warn(
        f"a step takes {one} with one thread, {many} with {max(seconds)}: call "
        "torch.set_num_threads(1), or pass threads='auto'",
        stacklevel=4,
    )
    return ""


def _measure_cost(run: RunState, fresh: Snapshot, record: Record, phase: Phase) -> None:
    budget_s = phase.budget_s

    def tick(size: int, visits: int) -> None:
        phase.update(f"round {visits}, B = {size}")

    def keep(points: tuple[TimePoint, ...]) -> None:
        record.update(times=points)

    times, contention, notes = measure_times(
        run, budget_s=budget_s, tick=tick, keep=keep
    )
    extra = tuple(Finding(code="RB108", severity="note", what=n) for n in notes)
    record.update(
        times=times,
        contention=contention,
        findings=(*record.measurements.findings, *extra),
    )
    sizes = [p.micro_batch for p in times]
    run.rewind(fresh)
    run.split(min(2 * run.ranks.size, run.job.length))
    run.step()  # makes the optimizer's state
    # The largest first: the law is the line through the two largest.
    memory: list[MemoryPoint] = []
    for size in reversed(sizes):
        memory.insert(0, measure_memory(run, size))
        late = len(memory) >= 3 and phase.elapsed_s > 1.5 * budget_s
        if run.ranks.first(late):
            break
    record.update(memory=tuple(memory))
    meter, _ = find_meter(run.device)
    if meter is not None and budget_s >= ENERGY_S:
        phase.update("energy")
        record.update(energy=measure_energy(run, sizes, meter))
    busy = ", machine busy: CPU time is used" if contention.busy else ""
    phase.summary = f"{len(times)} sizes, {sizes[0]} to {sizes[-1]}{busy}"


def _measure_noise(
    run: RunState,
    fresh: Snapshot,
    record: Record,
    phase: Phase,
    longest_evaluate_s: float,
    noise: GivenNoise | None,
) -> Measured:
    job = run.job

    def tick(found: Trajectory) -> None:
        record.update(noise=tuple(found.points), metrics=tuple(found.metrics))
        phase.update(f"step {run.steps}: {_running(found, job)}")

    sizes = [p.micro_batch for p in record.measurements.times]
    cost = _evaluate_seconds(run)
    record.update(evaluate_s=cost)
    held_out = None
    if cost is None or cost > longest_evaluate_s:
        kept, held_out = hold_out(job.length, job.seed)
        run.rewind(fresh, kept=kept)
        record.update(metric="held-out loss")
    start = run.snapshot()
    found = measure_trajectory(
        run,
        budget_s=phase.budget_s,
        held_out=held_out,
        micro_batch=-(-max(sizes) // run.ranks.size),
        least_group=_least_group(run, record),
        known=() if noise is None else noise.points,
        tick=tick,
    )
    record.update(noise=tuple(found.points), metrics=tuple(found.metrics))
    end = (
        ", at target" if found.reached else ", at a standstill" if found.stalled else ""
    )
    phase.summary = f"{_running(found, job)}, {len(found.points)} points{end}"
    return Measured(run, start, held_out, cost or 0.0)


def _least_group(run: RunState, record: Record) -> int:
    """Fewest examples that noise is measured with.

    Where examples touch, fewer of them than today are another function.
    """
    job, times = record.measurements.job, record.measurements.times
    coupled = run.ranks.first(bool(job.coupled))
    return job.batch_size if coupled else min(p.micro_batch for p in times)


def _running(found: Trajectory, job: Job) -> str:
    if len(found.points) < 2:
        return str(found.points[-1].noise_scale)
    law = critical_from_noise(found.points, job.batch_size)
    return f"B_crit {short(law.critical_batch)}"


def short(e: Estimate) -> str:
    """An estimate in few characters."""
    high = show_number(e.high) if math.isfinite(e.high) else "?"
    return f"{show_number(e.value)} ({show_number(e.low)} to {high})"


def _evaluate_seconds(run: RunState) -> float | None:
    """How long one call of ``evaluate`` takes: the least of three short ones."""
    if run.job.evaluate is None:
        return None
    times: list[float] = []
    while run.ranks.first(len(times) < 3 and sum(times) < 1.0):
        started = time.monotonic()
        run.evaluated()
        times.append(time.monotonic() - started)
    return run.ranks.first(min(times))
