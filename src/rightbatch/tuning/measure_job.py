"""Measuring a job: check, cost, noise, each saved as soon as it is known."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from rightbatch.core.errors import SettingError
from rightbatch.core.estimate import Estimate
from rightbatch.core.findings import Finding
from rightbatch.core.guards import preserved_rng
from rightbatch.core.progress import Watcher
from rightbatch.core.units import show_number, show_seconds
from rightbatch.data.order.held_out import hold_out
from rightbatch.fit.steps import critical_from_noise
from rightbatch.job.job import Job
from rightbatch.lint.linter import check
from rightbatch.measure.energy import find_meter, measure_energy
from rightbatch.measure.facts import job_facts
from rightbatch.measure.hardware import machine
from rightbatch.measure.record import (
    Measurements,
    TimePoint,
)
from rightbatch.measure.threads import pick_threads
from rightbatch.measure.time import measure_times
from rightbatch.measure.trajectory import Trajectory, measure_trajectory
from rightbatch.memory.peak import measure_memory
from rightbatch.memory.points import MemoryPoint
from rightbatch.training.run_state import RunState, Snapshot

# Shares of the budget [assumed]; what a phase leaves over goes to the race.
TIME_SHARE, NOISE_SHARE = 0.15, 0.35
LEAST_BUDGET_S = 1.0
ENERGY_S = 6.0  # of the cost's share; below, a dozen windows of a second take too much
# ``evaluate`` is called along the way if one call takes at most this share of the
# budget; a race makes some hundred calls [assumed].
EVALUATE_SHARE = 1 / 500


@dataclass(frozen=True)
class Start:
    """Where a race starts from.

    Attributes:
        run: What was measured, and goes on to race.
        warm: A warmed-up state of it.
        held_out: Examples left aside to compare by; None: the job's ``evaluate``.
    """

    run: RunState
    warm: Snapshot
    held_out: torch.Tensor | None


@dataclass
class Recorder:
    """Measurements as they grow, saved after every change where there is a file."""

    found: Measurements
    path: Path | None = None

    def update(self, **changes: Any) -> None:
        """Add what was measured, and save."""
        self.found = replace(self.found, **changes)
        if self.path is not None:
            self.found.save(self.path)

    def timed(self, phase: str, started: float) -> None:
        """Note how long a phase took."""
        self.found = self.found.spent(phase, time.monotonic() - started)


def measure_job(
    job: Job,
    *,
    budget_s: float,
    spec: str = "",
    command: str = "",
    path: Path | None = None,
    watcher: Watcher | None = None,
    threads: Literal["present", "auto"] = "present",
) -> tuple[Recorder, Start | None]:
    """Check a job, then measure time, memory and noise.

    Args:
        job: What is measured.
        budget_s: The whole budget of a tuning; measuring takes about half.
        spec: The job's address, kept in the record.
        command: What was typed, kept in the record.
        path: Where to save after every phase and every noise point.
        watcher: Hears of progress.
        threads: ``"auto"`` sets torch to one thread if that is faster for this job.

    Returns:
        The recorder with what was found, and a start for a race.

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
    watcher = watcher or Watcher()
    with preserved_rng():
        watcher.phase("Check the job", 3.0)
        started = time.monotonic()
        findings = check(job)
        findings.raise_errors()
        note = ""
        run = RunState.start(job)
        fresh = run.snapshot()
        picked, seconds = pick_threads(run)
        run.rewind(fresh)
        if picked != torch.get_num_threads():
            one, many = (show_seconds(s) for s in seconds.values())
            note = f", 1 thread ({one} a step; {max(seconds)}: {many})"
            if threads == "auto":
                torch.set_num_threads(picked)
            else:
                note = ""
                warnings.warn(
                    f"a step takes {one} with one thread, {many} with "
                    f"{max(seconds)}: call torch.set_num_threads(1), or pass "
                    "threads='auto'",
                    stacklevel=3,
                )
        recorder = Recorder(
            Measurements(
                version=version("rightbatch"),
                command=command,
                started=datetime.now().astimezone().isoformat(timespec="seconds"),
                job=job_facts(run, spec),
                machine=machine(run.device.type),
                findings=findings.items,
            ),
            path,
        )
        recorder.timed("check", started)
        recorder.update()
        kinds = f"{len(findings.warnings)} warnings" if findings.warnings else "ok"
        watcher.done(f"{kinds}: {findings.rules} rules{note}")
        _measure_cost(run, fresh, recorder, TIME_SHARE * budget_s, watcher)
        warm = _measure_noise(
            run, fresh, recorder, NOISE_SHARE * budget_s, budget_s, watcher
        )
    return recorder, warm


def _measure_cost(
    run: RunState,
    fresh: Snapshot,
    recorder: Recorder,
    budget_s: float,
    watcher: Watcher,
) -> None:
    watcher.phase("Time and memory", budget_s)
    started = time.monotonic()

    def tick(size: int, visits: int) -> None:
        watcher.progress(f"round {visits}, B = {size}")

    def keep(points: tuple[TimePoint, ...]) -> None:
        recorder.update(times=points)

    times, contention, notes = measure_times(
        run, budget_s=budget_s, tick=tick, keep=keep
    )
    run.rewind(fresh)
    extra = tuple(Finding(code="RB108", severity="note", what=n) for n in notes)
    recorder.update(
        times=times,
        contention=contention,
        findings=(*recorder.found.findings, *extra),
    )
    sizes = [p.micro_batch for p in times]
    run.split(min(2 * run.ranks.size, run.job.length))
    run.step()  # makes the optimizer's state
    # The largest first: the law is the line through the two largest.
    memory: list[MemoryPoint] = []
    for size in reversed(sizes):
        memory.insert(0, measure_memory(run, size))
        if len(memory) >= 3 and time.monotonic() - started > 1.5 * budget_s:
            break
    recorder.update(memory=tuple(memory))
    meter, _ = find_meter(run.device)
    if meter is not None and budget_s >= ENERGY_S:
        watcher.progress("energy")
        recorder.update(energy=measure_energy(run, sizes, meter))
    recorder.timed("cost", started)
    busy = ", machine busy: CPU time is used" if contention.busy else ""
    watcher.done(f"{len(times)} sizes, {sizes[0]} to {sizes[-1]}{busy}")


def _measure_noise(
    run: RunState,
    fresh: Snapshot,
    recorder: Recorder,
    noise_budget_s: float,
    budget_s: float,
    watcher: Watcher,
) -> Start | None:
    watcher.phase("Gradient noise", noise_budget_s)
    started = time.monotonic()

    def tick(found: Trajectory) -> None:
        recorder.update(noise=tuple(found.points), metrics=tuple(found.metrics))
        watcher.progress(f"step {run.steps}: {_running(found, job)}")

    sizes = [p.micro_batch for p in recorder.found.times]
    job, ranks = run.job, run.ranks
    run.rewind(fresh)
    cost = _evaluate_seconds(run)
    recorder.update(evaluate_s=cost)
    held_out = None
    if cost is None or cost > EVALUATE_SHARE * budget_s:
        kept, held_out = hold_out(job.length, job.seed)
        run.rewind(fresh, kept=kept)
        recorder.update(metric="held-out loss")
    found = measure_trajectory(
        run,
        budget_s=noise_budget_s,
        held_out=held_out,
        micro_batch=-(-max(sizes) // ranks.size),
        least_group=min(sizes),
        tick=tick,
    )
    recorder.update(noise=tuple(found.points), metrics=tuple(found.metrics))
    recorder.timed("noise", started)
    end = (
        ", at target" if found.reached else ", at a standstill" if found.stalled else ""
    )
    watcher.done(f"{_running(found, job)}, {len(found.points)} points{end}")
    return Start(run, found.warm, held_out) if found.warm is not None else None


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
