"""From a job to a plan: check, measure, decide, race, decide again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rightbatch.check import check
from rightbatch.errors import SettingError
from rightbatch.estimate import Estimate
from rightbatch.fit.progress import critical_from_noise
from rightbatch.isolation import preserved_rng
from rightbatch.job import Job
from rightbatch.measure.facts import job_facts
from rightbatch.measure.hardware import machine
from rightbatch.measure.memory import measure_memory
from rightbatch.measure.record import FindingRecord, Measurements
from rightbatch.measure.time import measure_times
from rightbatch.measure.trajectory import Trajectory, measure_trajectory
from rightbatch.plan.choice import Choice, steps_to_target
from rightbatch.plan.decide import Decision, decide
from rightbatch.plan.objective import Objective
from rightbatch.plan.options import Option
from rightbatch.plan.plan import Plan
from rightbatch.plan.scaling import scaling_for
from rightbatch.run.race import Entry, race
from rightbatch.training import Training
from rightbatch.watch import Watcher

if TYPE_CHECKING:
    from rightbatch.report.page import Page

# Shares of the budget [assumed]; what a phase leaves over goes to the race.
TIME_SHARE, NOISE_SHARE = 0.15, 0.35
LEAST_BUDGET_S = 1.0
# ``evaluate`` is called along the way if one call takes at most this share of the
# budget [assumed].
EVALUATE_SHARE = 1 / 100


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


@dataclass(frozen=True)
class Tuning:
    """The answer: a plan, what was measured, and how one led to the other."""

    plan: Plan
    measurements: Measurements
    choice: Choice

    @property
    def report(self) -> Page:
        """The HTML page; ``tuning.report.save("report.html")``."""
        from rightbatch.report.page import Page

        return Page(self.measurements, self.choice, self.plan)


def tune(
    job: Job,
    objective: Objective | None = None,
    *,
    budget_s: float = 60.0,
    deadline_s: float | None = None,
    memory_bytes: float | None = None,
    with_race: bool = True,
    spec: str = "",
    command: str = "",
    measurements_path: Path | None = None,
    watcher: Watcher | None = None,
) -> Tuning:
    """Find the batch size and learning rate that reach the job's result soonest.

    Args:
        job: What is trained.
        objective: What is to be least; default `Time`.
        budget_s: Seconds that measuring and racing may take together.
        deadline_s: Seconds to the target that must not be exceeded.
        memory_bytes: Bytes a step may take; default 90 % of what is free.
        with_race: Whether to race the plan against today's batch.
        spec: The job's address, kept in the record.
        command: What was typed, kept in the record.
        measurements_path: Where to save measurements while they grow.
        watcher: Hears of progress.

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
    watcher = watcher or Watcher()
    ends = time.monotonic() + budget_s
    with preserved_rng():
        recorder, warm = measure_job(
            job,
            budget_s=budget_s,
            spec=spec,
            command=command,
            path=measurements_path,
            watcher=watcher,
        )
        limits: dict[str, Any] = {
            "deadline_s": deadline_s,
            "memory_bytes": memory_bytes,
        }
        decision = decide(recorder.found, objective, **limits)
        left = ends - time.monotonic()
        if with_race and warm is not None and left > 0.1 * budget_s:
            _race(job, warm, decision.choice, recorder, left, budget_s, watcher)
            decision = decide(recorder.found, objective, **limits)
        recorder.update()
    return _tuning(recorder.found, decision)


def _tuning(found: Measurements, decision: Decision) -> Tuning:
    return Tuning(plan=decision.plan, measurements=found, choice=decision.choice)


def measure_job(
    job: Job,
    *,
    budget_s: float,
    spec: str = "",
    command: str = "",
    path: Path | None = None,
    watcher: Watcher | None = None,
) -> tuple[Recorder, Training | None]:
    """Check a job, then measure time, memory and noise.

    Args:
        job: What is measured.
        budget_s: The whole budget of a tuning; measuring takes about half.
        spec: The job's address, kept in the record.
        command: What was typed, kept in the record.
        path: Where to save after every phase and every noise point.
        watcher: Hears of progress.

    Returns:
        The recorder with what was found, and a warmed-up state for a race.

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
        training = Training.start(job)
        recorder = Recorder(
            Measurements(
                version=version("rightbatch"),
                command=command,
                started=datetime.now().astimezone().isoformat(timespec="seconds"),
                job=job_facts(training, spec),
                machine=machine(training.device.type),
                findings=tuple(
                    FindingRecord(
                        code=f.code,
                        severity=f.severity,
                        what=f.what,
                        seen=f.seen,
                        why=f.why,
                        fix=f.fix,
                    )
                    for f in findings.items
                ),
            ),
            path,
        )
        recorder.timed("check", started)
        recorder.update()
        kinds = f"{len(findings.warnings)} warnings" if findings.warnings else "ok"
        watcher.done(f"{kinds}: {findings.rules} rules")
        _measure_cost(job, training, recorder, TIME_SHARE * budget_s, watcher)
        warm = _measure_noise(job, recorder, NOISE_SHARE * budget_s, budget_s, watcher)
    return recorder, warm


def _measure_cost(
    job: Job,
    training: Training,
    recorder: Recorder,
    budget_s: float,
    watcher: Watcher,
) -> None:
    watcher.phase("Time and memory", budget_s)
    started = time.monotonic()

    def tick(size: int, visits: int) -> None:
        watcher.progress(f"round {visits}, B = {size}")

    times, contention, notes = measure_times(job, budget_s=budget_s, tick=tick)
    extra = tuple(
        FindingRecord(code="RB108", severity="note", what=n, seen="", why="", fix="")
        for n in notes
    )
    recorder.update(
        times=times,
        contention=contention,
        findings=(*recorder.found.findings, *extra),
    )
    sizes = [p.micro_batch for p in times]
    training.step(min(2, job.length))  # makes the optimizer's state
    recorder.update(memory=tuple(measure_memory(training, b) for b in sizes))
    recorder.timed("cost", started)
    busy = ", machine busy: CPU time is used" if contention.busy else ""
    watcher.done(f"{len(times)} sizes, {sizes[0]} to {sizes[-1]}{busy}")


def _measure_noise(
    job: Job,
    recorder: Recorder,
    noise_budget_s: float,
    budget_s: float,
    watcher: Watcher,
) -> Training | None:
    watcher.phase("Gradient noise", noise_budget_s)
    started = time.monotonic()

    def tick(found: Trajectory, training: Training) -> None:
        recorder.update(noise=tuple(found.points), metrics=tuple(found.metrics))
        watcher.progress(f"step {training.steps}: {_running(found, job)}")

    found = measure_trajectory(
        job,
        budget_s=noise_budget_s,
        evaluate=evaluate_is_cheap(job, budget_s),
        micro_batch=max(p.micro_batch for p in recorder.found.times),
        tick=tick,
    )
    recorder.update(noise=tuple(found.points), metrics=tuple(found.metrics))
    recorder.timed("noise", started)
    end = ", target reached" if found.reached else ""
    watcher.done(f"{_running(found, job)}, {len(found.points)} points{end}")
    return found.warm


def _running(found: Trajectory, job: Job) -> str:
    if len(found.points) < 2:
        return str(found.points[-1].noise_scale)
    law = critical_from_noise(found.points, job.batch_size)
    return f"B_crit {short(law.critical_batch)}"


def short(e: Estimate) -> str:
    """An estimate in few characters."""
    high = f"{e.high:.2g}" if math.isfinite(e.high) else "?"
    return f"{e.value:.3g} ({e.low:.2g} to {high})"


def evaluate_is_cheap(job: Job, budget_s: float) -> bool:
    """Whether one call of ``evaluate`` takes a small share of the budget."""
    if job.evaluate is None:
        return False
    model = job.make_model()
    job.evaluated(model)  # the first call may warm things up
    started = time.monotonic()
    job.evaluated(model)
    return time.monotonic() - started < EVALUATE_SHARE * budget_s


def _race(
    job: Job,
    warm: Training,
    choice: Choice,
    recorder: Recorder,
    left_s: float,
    budget_s: float,
    watcher: Watcher,
) -> None:
    watcher.phase("Race", left_s)
    started = time.monotonic()

    def tick(heat: int, heats: int, role: str) -> None:
        watcher.progress(f"heat {heat} of {heats}: {role}")

    reached = steps_to_target(recorder.found)
    to_target = math.inf
    if reached is not None:
        today_s = choice.laws.time.seconds(
            min(job.batch_size, choice.laws.time.largest)
        )
        to_target = max(reached - warm.steps, 1) * today_s
    busy = recorder.found.contention is not None and recorder.found.contention.busy
    clock: Callable[[], float] = time.process_time if busy else time.perf_counter
    result = race(
        job,
        warm,
        race_entries(choice),
        budget_s=left_s,
        evaluate=evaluate_is_cheap(job, budget_s),
        to_target_s=to_target,
        clock=clock,
        tick=tick,
    )
    recorder.update(race=result)
    recorder.timed("race", started)
    if result is None:
        watcher.done("skipped: the budget allows too few steps")
        return
    best = max(result.lanes, key=lambda lane: lane.speedup.value)
    watcher.done(f"{result.heats} heats, first: B = {best.batch_size} ({best.role})")


def race_entries(choice: Choice) -> tuple[Entry, ...]:
    """The plan, today's batch, and the neighbour on the less certain side.

    Where the plan is today's batch, both its neighbours run against it.
    """
    sizes = [o.batch_size for o in choice.options]
    place = sizes.index(choice.chosen.batch_size)
    below = choice.options[place - 1] if place > 0 else None
    above = choice.options[place + 1] if place + 1 < len(sizes) else None
    picked = [("today", choice.today)]
    if choice.chosen.batch_size != choice.today.batch_size:
        picked.insert(0, ("plan", choice.chosen))
        neighbour = _less_certain(choice, below, above)
        if neighbour is not None:
            picked.append(("neighbour", neighbour))
    else:
        pairs = (("smaller", below), ("larger", above))
        picked += [(role, o) for role, o in pairs if o is not None]
    return tuple(_entry(choice, role, option) for role, option in picked)


def _less_certain(
    choice: Choice, below: Option | None, above: Option | None
) -> Option | None:
    """The neighbour whose predicted interval reaches lower; never today's batch."""
    today = choice.today.batch_size
    sides = [o for o in (below, above) if o is not None and o.batch_size != today]
    return min(sides, key=lambda o: o.time.low, default=None)


def _entry(choice: Choice, role: str, option: Option) -> Entry:
    job = choice.found.job
    scaling = scaling_for(
        job.optimizer,
        job.batch_size,
        option.batch_size,
        rule=choice.scaling.rule,
        noise_scale=choice.laws.noise.critical_batch.value,
    )
    return Entry(
        role=role,
        batch_size=option.batch_size,
        micro_batch=option.micro_batch,
        lr=job.lr * scaling.lr,
        scaling=scaling,
        step_s=option.step_time_s.value,
    )
