"""Measuring a job: check, cost, noise, each saved as soon as it is known."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from rightbatch.core.deadline import Deadline
from rightbatch.core.errors import SettingError
from rightbatch.core.estimate import Estimate
from rightbatch.core.findings import Coupled, Finding
from rightbatch.core.guards import preserved_rng
from rightbatch.core.progress import Phase, Progress
from rightbatch.core.units import show_number, show_seconds
from rightbatch.coupling.batch_norm_alone import batch_norm_alone
from rightbatch.coupling.probe import LEAST_EXAMPLES
from rightbatch.data.order.held_out import MOST, hold_out
from rightbatch.fit.step_time import fit_time
from rightbatch.job.job import Job
from rightbatch.lint.linter import run_rules
from rightbatch.lint.probe import BACKWARD, Probe
from rightbatch.measure.energy import (
    MOST_SIZES,
    ROUNDS,
    WINDOW_S,
    find_meter,
    measure_energy,
)
from rightbatch.measure.facts import job_facts
from rightbatch.measure.hardware import machine
from rightbatch.measure.measurements import TimePoint
from rightbatch.measure.pairs import measure_pairs
from rightbatch.measure.threads import pick_threads
from rightbatch.measure.time import measure_times
from rightbatch.measure.trajectory import Trajectory, measure_trajectory
from rightbatch.memory.peak import measure_memory
from rightbatch.memory.points import MemoryPoint
from rightbatch.plan.evidence import LONGEST_EVALUATION
from rightbatch.plan.laws import critical_of
from rightbatch.training.any_checkpoint import Start
from rightbatch.training.ranks import joined
from rightbatch.training.run_state import RunState, Snapshot
from rightbatch.training.start_from import begin_from
from rightbatch.tuning.given_noise import GivenNoise
from rightbatch.tuning.measurement_record import Record

# Shares of the budget [assumed]; what a phase leaves over goes to the race, and what it
# takes too much is taken from those after it.
CHECK_SHARE, THREADS_SHARE, COST_SHARE, NOISE_SHARE = 0.07, 0.03, 0.15, 0.25
WARMING_SHARE = 0.1  # instead of the last, where the noise is known [assumed]
TIMES_SHARE = 0.7  # of the cost's time for step times, the rest for memory [assumed]
PAIRS_SHARE = 0.05  # of the budget, where the loss compares examples [assumed]
ENERGY_SHARE = 0.10  # of the budget, where there is a meter [assumed]
LEAST_S = 0.5  # shares up to so much are given whole [assumed]
LEAST_BUDGET_S = 1.0
# Threads are worth trying for so long even where the budget is small: they may make
# every step a hundred times longer. [assumed]
THREADS_S = 1.0
PICKING = 12  # examples that are trained on to tell, at the least
TELLING_SHARE = 0.015  # of the budget, to tell how long it takes [assumed]
LEAST_HELD_OUT = 32  # examples whose loss still tells runs apart [assumed]
WATCHED = 1.5  # a step whose memory is counted takes so many times longer, at first


@dataclass(frozen=True)
class Measured:
    """The run that was measured, and where a race starts from.

    Attributes:
        run: It goes on to race.
        fresh: Its initial state, over the examples that are not held out: from it all
            race.
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
        budget_s: The whole budget of a tuning; measuring takes half of it at most.
        threads: ``"auto"`` sets torch to one thread if that is faster for this job.
        start: Where the run begins; None: at the job's initial weights.
        noise: Known from a real run; then none is measured here.

    Returns:
        The run, and where a race can start from.

    Raises:
        JobError: The job cannot be measured.
        SettingError: The budget is below one second, or not a number; or the start is
            of another model, optimizer or batch.
        UnidentifiedError: Not even three sizes of step can be timed in half the budget.
    """
    if not LEAST_BUDGET_S <= budget_s < math.inf:
        raise SettingError(
            f"the budget must be at least {LEAST_BUDGET_S:g} second",
            seen=f"{budget_s:g} s",
            fix="--budget 60",
        )
    whole = Deadline.within(budget_s)
    noise_share = NOISE_SHARE if noise is None else WARMING_SHARE

    def left_s(until: float) -> float:
        return until * budget_s - whole.elapsed_s

    def time_for(share: float, until: float) -> float:
        """So large a share; less, where the phases before have taken some of it."""
        share_s = share * budget_s
        return max(min(share_s, left_s(until)), min(share_s, LEAST_S), share_s / 3)

    with preserved_rng():
        share = CHECK_SHARE + THREADS_SHARE
        with record.timed(progress.phase("Check the job", share * budget_s)) as phase:
            probe = Probe(job, CHECK_SHARE * budget_s)
            findings = run_rules(probe)
            findings.raise_errors()
            run = RunState.start(job, group=_group(probe, findings.coupled))
            notes = () if start is None else begin_from(run, start)
            notes += () if noise is None else noise.findings(run)
            fresh = run.snapshot()
            example_s = BACKWARD * probe.forward_s
            note = _set_threads(run, threads, budget_s, example_s)
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
        share += COST_SHARE
        cost_s = time_for(COST_SHARE, share)
        with record.timed(progress.phase("Time and memory", cost_s)) as phase:
            most_s = max(left_s(share + noise_share), cost_s)
            _measure_cost(run, record, phase, most_s, example_s)
            _measure_energy(run, record, phase, left_s(share + ENERGY_SHARE))
        noise_s = time_for(noise_share, share + noise_share)
        with record.timed(progress.phase("Gradient noise", noise_s)) as phase:
            run.rewind(fresh)
            measured = _measure_noise(run, fresh, record, phase, probe, budget_s, noise)
        record.share(run.ranks)
    return measured


def _group(probe: Probe, coupled: Coupled) -> int | None:
    """Examples that are normalised together in larger micro-batches of one process."""
    job = probe.job
    if coupled != "normalization" or joined() or job.batch_size < 2:
        return None
    if not probe.affords(LEAST_EXAMPLES):
        return None
    return job.batch_size if batch_norm_alone(job, probe.model) else None


def _set_threads(
    run: RunState,
    threads: Literal["present", "auto"],
    budget_s: float,
    example_s: float,
) -> str:
    """Time one thread against many; set the faster, or warn. Says what was done."""
    time_s = max(THREADS_SHARE * budget_s, min(THREADS_S, budget_s / 4))
    if PICKING * example_s > time_s:
        return ""
    picked, seconds = pick_threads(run, time_s)
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


def _measure_cost(
    run: RunState, record: Record, phase: Phase, most_s: float, example_s: float
) -> None:
    """Step times, then peak memory, of the same sizes."""
    budget_s = phase.budget_s

    def tick(size: int, visits: int) -> None:
        phase.update(f"round {visits}, B = {size}")

    def keep(points: tuple[TimePoint, ...]) -> None:
        record.update(times=points)

    times, contention, notes = measure_times(
        run,
        budget_s=TIMES_SHARE * budget_s,
        most_s=most_s,
        example_s=example_s,
        tick=tick,
        keep=keep,
    )
    extra = tuple(Finding(code="RB108", severity="note", what=n) for n in notes)
    record.update(
        times=times,
        contention=contention,
        findings=(*record.measurements.findings, *extra),
    )
    phase.update("memory")
    deadline = Deadline.within(budget_s - phase.elapsed_s)
    record.update(memory=_memory_points(run, times, deadline))
    sizes = [p.micro_batch for p in times]
    busy = ", machine busy: CPU time is used" if contention.busy else ""
    phase.summary = f"{len(times)} sizes, {sizes[0]} to {sizes[-1]}{busy}"


def _memory_points(
    run: RunState, times: Sequence[TimePoint], deadline: Deadline
) -> tuple[MemoryPoint, ...]:
    """Peaks of the sizes that fit in time, the largest first: they carry the law."""
    memory: list[MemoryPoint] = []
    slower = WATCHED
    for point in reversed(times):
        step_s = point.step_time_s.value
        if not run.ranks.first(deadline.allows(slower * step_s)):
            continue
        started = time.monotonic()
        memory.insert(0, measure_memory(run, point.micro_batch))
        slower = (time.monotonic() - started) / step_s
    return tuple(memory)


def _measure_energy(
    run: RunState, record: Record, phase: Phase, budget_s: float
) -> None:
    """Energy where there is a meter: windows of a few sizes, or of two, if they fit."""
    meter, _ = find_meter(run.device)
    if meter is None:
        return
    times = record.measurements.times
    sizes, longest_s = [p.micro_batch for p in times], times[-1].step_time_s.value
    for chosen in (sizes, [sizes[0], sizes[-1]]):
        count = min(len(chosen), MOST_SIZES)
        rounds = int(budget_s / (count * (WINDOW_S + 2 * longest_s)))
        if run.ranks.first(rounds) >= 1:
            phase.update("energy")
            rounds = min(int(run.ranks.first(rounds)), ROUNDS)
            record.update(energy=measure_energy(run, chosen, meter, rounds=rounds))
            return


def _measure_noise(
    run: RunState,
    fresh: Snapshot,
    record: Record,
    phase: Phase,
    probe: Probe,
    budget_s: float,
    noise: GivenNoise | None,
) -> Measured:
    """The trajectory of today's setting, by a metric that is cheap enough."""
    job = run.job

    def tick(found: Trajectory) -> None:
        record.update(noise=tuple(found.points), metrics=tuple(found.metrics))
        scale = short(found.points[-1].noise_scale) if found.points else "not measured"
        phase.update(f"step {run.steps}: noise scale {scale}")

    longest_s = LONGEST_EVALUATION * budget_s
    metric_s = _evaluate_seconds(run, probe.evaluate_s, TELLING_SHARE * budget_s)
    record.update(evaluate_s=metric_s)
    held_out = None
    if metric_s is None or metric_s > longest_s:
        fit = int(run.ranks.first(longest_s / probe.forward_s))
        most = min(max(fit, LEAST_HELD_OUT), MOST)
        kept, held_out = hold_out(job.length, job.seed, most)
        run.rewind(fresh, kept=kept)
        fresh = run.snapshot()
        metric_s = len(held_out) * probe.forward_s
        record.update(metric="held-out loss")
    times = {p.micro_batch: p.step_time_s.value for p in record.measurements.times}
    largest, batch = max(times), min(job.batch_size, job.length)
    found = measure_trajectory(
        run,
        budget_s=phase.budget_s - phase.elapsed_s,
        held_out=held_out,
        micro_batch=-(-largest // run.ranks.size),
        least_group=_least_group(run, record),
        known=() if noise is None else noise.points,
        step_s=times.get(batch, times[largest] * batch / largest),
        metric_s=metric_s,
        tick=tick,
    )
    record.update(
        noise=tuple(found.points),
        metrics=tuple(found.metrics),
        metric_s=found.metric_s,
        diverged=found.diverged,
    )
    ends = {
        ", diverged": found.diverged,
        ", at target": found.reached,
        ", at a standstill": found.stalled,
    }
    end = next((text for text, true in ends.items() if true), "")
    compares = record.measurements.job.coupled == "loss" and run.ranks.size == 1
    if compares and not found.diverged:
        law = fit_time(record.measurements.times, record.measurements.contention)
        share_s = PAIRS_SHARE * budget_s
        record.update(pairs=measure_pairs(run, sorted(times), law.seconds, share_s))
    count = f"{len(found.points)} point{'' if len(found.points) == 1 else 's'}"
    phase.summary = f"{_noise_seen(found, record)}, {count}{end}"
    return Measured(run, fresh, held_out, run.ranks.first(found.metric_s or metric_s))


def _least_group(run: RunState, record: Record) -> int:
    """Fewest examples that noise is measured with.

    Where examples touch, fewer of them than today are another function.
    """
    job, times = record.measurements.job, record.measurements.times
    coupled = run.ranks.first(bool(job.coupled))
    return job.batch_size if coupled else min(p.micro_batch for p in times)


def _noise_seen(found: Trajectory, record: Record) -> str:
    """What the noise along the run says, in few words."""
    if not found.points:
        return "not measured"
    critical = critical_of(record.measurements)
    if critical is None:
        return f"noise {short(found.points[0].noise_scale)}"
    return f"B_crit {short(critical)}"


def short(e: Estimate) -> str:
    """An estimate in few characters."""
    high = show_number(e.high) if math.isfinite(e.high) else "?"
    return f"{show_number(e.value)} ({show_number(e.low)} to {high})"


def _evaluate_seconds(
    run: RunState, first_s: float | None, budget_s: float
) -> float | None:
    """How long one call of ``evaluate`` takes: the least of a few short ones.

    Args:
        run: It stays where it is.
        first_s: The call that the checks have made; None where they made none.
        budget_s: Seconds after which no other call is made.
    """
    first_s = run.ranks.first(math.nan if first_s is None else first_s)
    if math.isnan(first_s):
        return None
    times = [first_s]
    while run.ranks.first(len(times) < 4 and sum(times) < budget_s):
        started = time.monotonic()
        run.evaluated()
        times.append(time.monotonic() - started)
    return run.ranks.first(min(times))
