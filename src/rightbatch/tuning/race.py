"""The race: a few batches trained from one start for equal time, round by round."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats

from rightbatch.core.errors import JobError
from rightbatch.core.estimate import Estimate
from rightbatch.core.torch_private import is_out_of_memory
from rightbatch.measure.held_out_loss import metric_of
from rightbatch.measure.measurements import Candidate, Race
from rightbatch.schedules.scaling import Scaling, apply_scaling
from rightbatch.training.run_state import RunState, Snapshot

MARKS = 10  # evaluations of a candidate in a round
MIN_ROUNDS, MAX_ROUNDS = 3, 8
LEAST_STEPS = 20  # updates of the slowest candidate below which a round tells nothing
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A candidate before the race: ``step_s`` is its predicted step time."""

    role: str
    batch_size: int
    micro_batch: int
    lr: float
    scaling: Scaling
    step_s: float


@dataclass
class Curve:
    """Best value so far (less is better) at each mark of one candidate in one round.

    ``start`` is the value at the common start, at time 0.
    """

    start: float = math.inf
    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    last: float = math.inf
    steps: int = 0

    def time_to(self, value: float) -> float:
        """When the curve first reached a value, interpolated between marks."""
        before, t0 = self.start, 0.0
        for found, t1 in zip(self.values, self.times, strict=True):
            if found <= value:
                if not math.isfinite(before) or before <= value:
                    return t1
                return t0 + (t1 - t0) * (before - value) / (before - found)
            before, t0 = found, t1
        return math.inf


def speedup(candidate: Curve, today: Curve) -> float:
    """How many times sooner one candidate was where the slower of the two ended.

    Symmetric: exchanging the candidates gives the reciprocal. Bounded by ``MARKS``
    either way, since nothing is known before the first mark.
    """
    common = max(candidate.values[-1], today.values[-1])
    better, today_better = (
        c.values[-1] < c.start and math.isfinite(c.values[-1])
        for c in (candidate, today)
    )
    if not (better and today_better):  # who never got better than the start has lost
        return float(MARKS) ** (better - today_better)
    ratio = today.time_to(common) / candidate.time_to(common)
    return min(max(ratio, 1 / MARKS), float(MARKS))


def race(
    run: RunState,
    warm: Snapshot,
    entries: Sequence[Entry],
    *,
    budget_s: float,
    held_out: torch.Tensor | None,
    to_target_s: float = math.inf,
    clock: Clock = time.perf_counter,
    tick: Callable[[int, int, str], None] = lambda number, rounds, role: None,
) -> Race | None:
    """Train every entry from one warmed-up start for equal time; compare on held-out.

    In a round all candidates see the same stream of examples, cut by their own batch;
    every round has a stream of its own. The order of candidates rotates from round to
    round. On several ranks all train together, and the first one's clock counts.

    Args:
        run: What is trained; it is left somewhere else.
        warm: The common start.
        entries: The candidates; one has the role ``"today"``.
        budget_s: Wall seconds for everything.
        held_out: Examples to compare by their loss; None for the job's ``evaluate``.
        to_target_s: How long today's batch needs from here to the target, if known:
            there is nothing to compare beyond.
        clock: What equal time is measured by.
        tick: Called with (number, rounds, role) before every candidate.

    Returns:
        The result, or None where the budget allows too few steps to tell anything.
    """
    job, by_evaluate = run.job, held_out is None
    sign = -1.0 if by_evaluate and job.goal == "max" else 1.0

    def value() -> float:
        return metric_of(run, held_out)

    started = time.perf_counter()
    run.rewind(warm, seed=job.seed)
    rewind_s = time.perf_counter() - started
    start = value()
    cost = run.ranks.first(
        rewind_s + (time.perf_counter() - started - rewind_s) * MARKS
    )
    candidate_s = budget_s / (MIN_ROUNDS * len(entries)) - cost
    candidate_s = run.ranks.first(min(candidate_s, 1.2 * to_target_s))
    if candidate_s < LEAST_STEPS * max(e.step_s for e in entries):
        return None
    rounds = int(run.ranks.first(budget_s / (len(entries) * (candidate_s + cost))))
    rounds = min(max(rounds, MIN_ROUNDS), MAX_ROUNDS)
    curves: dict[str, list[Curve]] = {e.role: [] for e in entries}
    for number in range(rounds):
        shift = number % len(entries)
        for entry in [*entries[shift:], *entries[:shift]]:
            tick(number + 1, rounds, entry.role)
            run.rewind(warm, seed=job.seed + 1000 + number)
            apply_scaling(run.optimizer, entry.scaling)
            run.split(entry.batch_size, -(-entry.micro_batch // run.ranks.size))
            curve = Curve(start=sign * start)
            _train_candidate(run, candidate_s, value, sign, clock, curve)
            curves[entry.role].append(curve)
    return Race(
        metric="evaluate" if by_evaluate else "held-out loss",
        goal=job.goal if by_evaluate else "min",
        start=start,
        seconds=candidate_s,
        rounds=rounds,
        candidates=tuple(
            _candidate(e, curves[e.role], curves["today"], sign) for e in entries
        ),
    )


def _train_candidate(
    run: RunState,
    candidate_s: float,
    value: Callable[[], float],
    sign: float,
    clock: Clock,
    curve: Curve,
) -> None:
    """One candidate of one round; one that fails or diverges goes on infinitely bad."""
    elapsed, first = 0.0, run.steps
    best, failed = curve.start, False
    for mark in range(1, MARKS + 1):
        until = candidate_s * mark / MARKS
        try:
            elapsed += 0.0 if failed else _train_until(run, until - elapsed, clock)
            curve.last = math.inf if failed else sign * value()
        except (JobError, RuntimeError, MemoryError) as error:
            if not isinstance(error, JobError) and not is_out_of_memory(error):
                raise
            curve.last, failed = math.inf, True
        best = min(best, curve.last if math.isfinite(curve.last) else math.inf)
        curve.times.append(until if failed else elapsed)
        curve.values.append(best)
    curve.steps = run.steps - first


def _train_until(run: RunState, seconds: float, clock: Clock) -> float:
    """Train for so long by the clock, or four times so long by the wall."""
    begun, wall = clock(), time.perf_counter()
    while run.ranks.first(
        clock() - begun < seconds and time.perf_counter() - wall < 4 * seconds
    ):
        run.step()
    return clock() - begun


def _candidate(
    entry: Entry, own: list[Curve], today: list[Curve], sign: float
) -> Candidate:
    ratios = [speedup(a, b) for a, b in zip(own, today, strict=True)]
    if entry.role == "today":
        estimate = Estimate.exact(1.0, "x")
    else:
        logs = np.log(ratios)
        wide = float(stats.t.ppf(0.975, len(logs) - 1))
        half = wide * float(logs.std(ddof=1)) / math.sqrt(len(logs))
        estimate = Estimate(
            value=math.exp(logs.mean()),
            low=math.exp(logs.mean() - half),
            high=math.exp(logs.mean() + half),
            unit="x",
            n=len(logs),
            method="rounds, t interval of the log ratio",
        )
    return Candidate(
        role=entry.role,
        batch_size=entry.batch_size,
        micro_batch=entry.micro_batch,
        lr=entry.lr,
        steps=round(sum(c.steps for c in own) / len(own)),
        metrics=tuple(sign * c.last for c in own),
        speedup=estimate,
    )
