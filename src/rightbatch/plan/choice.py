"""Choosing: the best batch under an objective and limits, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rightbatch.core.errors import SettingError, UnidentifiedError
from rightbatch.fit.energy import fit_energy
from rightbatch.fit.step_time import fit_time
from rightbatch.fit.steps import critical_from_noise
from rightbatch.measure.record import Candidate, Measurements, NoisePoint
from rightbatch.measure.standstill import best_step, has_stalled
from rightbatch.memory.envelope import fit_points
from rightbatch.plan.evidence import (
    Evidence,
    candidate_of,
    evidence_for,
    race_settles,
    steps_to_target,
)
from rightbatch.plan.objectives import Energy, Examples, Objective, Time, no_energy
from rightbatch.plan.options import Laws, Option, candidate_batches
from rightbatch.schedules.scaling import Scaling, scaling_for

FLAT = 1.10  # batches within 10 % of the best count as equally good [assumed]
# The laws decide when, in 9 of 10 draws of all that is uncertain, the choice costs at
# most so much more than the best batch of that draw. [assumed]
TOLERATED, SURE = 1.30, 0.9
MEMORY_SHARE = 0.9  # of the free memory may be planned with [assumed]


@dataclass(frozen=True)
class Choice:
    """A batch, everything it was chosen from, and how sure the choice is.

    Attributes:
        found: The measurements.
        laws: The two laws fitted to them.
        objective: What was to be least.
        options: Every batch that fits, in order of size.
        chosen: The one taken.
        today: Today's batch, even where it does not fit.
        by_model: What the laws alone would take.
        flat: Smallest and largest batch predicted within 10 % of the best.
        regret: What the laws' choice costs over the best, at the 90th percentile.
        sure: Whether that is little enough, or a race has told it from the others.
        evidence: What a race said of it against today's setting.
        decided_by: ``"laws"`` or ``"race"``.
        scaling: How the optimizer's numbers follow from today's.
        limit_bytes: Memory the options had to fit in.
        deadline_s: Seconds to the target they had to keep, if any.
    """

    found: Measurements
    laws: Laws
    objective: Objective
    options: tuple[Option, ...]
    chosen: Option
    today: Option
    by_model: Option
    flat: tuple[int, int]
    regret: float
    sure: bool
    evidence: Evidence
    decided_by: str
    scaling: Scaling
    limit_bytes: float
    deadline_s: float | None

    @property
    def decided(self) -> bool:
        """Sure, and proven: laws alone are worth trying, never a verdict."""
        return self.sure and self.evidence.proves

    @property
    def candidate(self) -> Candidate | None:
        """The race candidate of the chosen batch, if it was raced."""
        return candidate_of(self.found, self.chosen)


def choose(
    found: Measurements,
    objective: Objective | None = None,
    *,
    deadline_s: float | None = None,
    memory_bytes: float | None = None,
    rule: str = "auto",
) -> Choice:
    """Choose batch, split and learning rate from measurements; measure nothing.

    Args:
        found: What was measured. A race in it overrules the laws where they disagree.
        objective: What is to be least; default `Time`.
        deadline_s: Seconds to the target that must not be exceeded.
        memory_bytes: Bytes a step may take; default 90 % of what was free.
        rule: How the learning rate follows, see `plan.scaling.scaling_for`.

    Raises:
        SettingError: A limit is not positive, or no batch fits in memory.
        UnidentifiedError: Something needed was not measured, the deadline cannot be
            judged because no run has reached the target, or no batch keeps it.
    """
    objective = objective or Time()
    limit = limit_bytes(found, memory_bytes)
    laws = laws_of(found)
    if isinstance(objective, Energy) and objective.watts is None and not laws.energy:
        raise no_energy("none was measured")
    sizes = candidate_batches(laws, found.job.examples)
    options = tuple(o for b in sizes if (o := laws.option(b, limit)) is not None)
    if not options:
        _refuse_memory(laws, limit)
    today = laws.option(laws.today, None)
    assert today is not None, "today's batch was run, so it has a split"
    allowed = _within_deadline(options, deadline_s)
    by_model = best_option(allowed, objective)
    regret = _regret(laws, allowed, by_model, objective)
    chosen = by_model
    if _is_time(laws, objective):
        chosen = _race_choice(found, allowed, by_model)
    candidate = candidate_of(found, chosen)
    settled = _is_time(laws, objective) and race_settles(found, candidate)
    told = math.isfinite(laws.noise.critical_batch.value)
    best = min(cost(o, objective) for o in allowed)
    flat = [o.batch_size for o in allowed if cost(o, objective) <= FLAT * best]
    return Choice(
        found=found,
        laws=laws,
        objective=objective,
        options=options,
        chosen=chosen,
        today=today,
        by_model=by_model,
        flat=(flat[0], flat[-1]),
        regret=regret,
        sure=(regret <= TOLERATED and told) or settled,
        evidence=evidence_for(found, options, chosen, by_model),
        decided_by="laws" if chosen is by_model else "race",
        scaling=scaling_of(found, laws, chosen.batch_size, rule),
        limit_bytes=limit,
        deadline_s=deadline_s,
    )


def laws_of(found: Measurements) -> Laws:
    """Fit both laws to what was measured.

    Raises:
        UnidentifiedError: Times or noise are missing or too few.
    """
    return Laws(
        time=fit_time(found.times, found.contention),
        memory=fit_points(found.memory) if len(found.memory) >= 2 else None,
        noise=critical_from_noise(points_of_progress(found), found.job.batch_size),
        today=found.job.batch_size,
        steps_to_target=steps_to_target(found),
        energy=fit_energy(found.energy) if len(found.energy) >= 2 else None,
    )


def points_of_progress(found: Measurements) -> tuple[NoisePoint, ...]:
    """The noise points up to the best evaluation, if the run stood still after it."""
    metrics, goal = found.metrics, found.metric_goal
    if steps_to_target(found) is not None or not has_stalled(metrics, goal):
        return found.noise
    end = best_step(metrics, goal)
    kept = tuple(p for p in found.noise if p.step <= end)
    return kept if len(kept) >= 2 else found.noise


def scaling_of(
    found: Measurements, laws: Laws, batch_size: int, rule: str = "auto"
) -> Scaling:
    """How the job's optimizer follows to a batch, with the noise that was measured."""
    critical = laws.noise.critical_batch
    # Without an upper bound, what is at least known of it: that rate is the safer one.
    noise = critical.value if math.isfinite(critical.value) else critical.low
    return scaling_for(
        found.job.family,
        laws.today,
        batch_size,
        rule=rule,
        noise_scale=noise,
        decoupled_decay=found.job.decoupled_decay,
    )


def _is_time(laws: Laws, objective: Objective) -> bool:
    """Whether the objective is time in another unit, so that a race can settle it."""
    if isinstance(objective, Energy):
        return laws.energy is None
    return not isinstance(objective, Examples)


def cost(option: Option, objective: Objective) -> float:
    """What the objective counts, over today's.

    Money is a constant price times time on one machine; energy is as measured, or a
    constant power times time where there was no meter.
    """
    if isinstance(objective, Energy) and option.energy is not None:
        return option.energy.value
    kind = option.examples if isinstance(objective, Examples) else option.time
    return kind.value


def best_option(options: Sequence[Option], objective: Objective) -> Option:
    """The option of least cost; for `Examples` the fastest of those about as few."""
    if isinstance(objective, Examples):
        least = min(o.examples.value for o in options)
        few = [
            o for o in options if o.examples.value <= (1 + objective.tolerance) * least
        ]
        return min(few, key=lambda o: o.time.value)
    return min(options, key=lambda o: cost(o, objective))


def _race_choice(
    found: Measurements,
    allowed: Sequence[Option],
    by_model: Option,
) -> Option:
    """The laws' choice, unless another candidate was clearly faster in the race."""
    mine = candidate_of(found, by_model)
    if mine is None or found.race is None:
        return by_model
    winner = max(found.race.candidates, key=lambda candidate: candidate.speedup.value)
    if winner.speedup.low <= mine.speedup.high:
        return by_model  # the race does not tell them apart
    return next((o for o in allowed if candidate_of(found, o) is winner), by_model)


def limit_bytes(found: Measurements, memory_bytes: float | None) -> float:
    """Bytes a step may take: as asked for, or 90 % of what was free.

    Raises:
        SettingError: What is asked for is not positive.
    """
    if memory_bytes is None:
        return MEMORY_SHARE * found.machine.memory_bytes
    if memory_bytes <= 0:
        raise SettingError("memory must be positive", seen=f"{memory_bytes} bytes")
    return memory_bytes


def _refuse_memory(laws: Laws, limit: float) -> None:
    assert laws.memory is not None, "only a memory law can leave no option"
    raise SettingError(
        "not even one example at a time fits in the memory allowed",
        seen=f"{laws.memory.peak(1) / 2**20:.1f} MiB needed at micro-batch 1, "
        f"{limit / 2**20:.1f} MiB allowed",
        why="more would be needed by every larger micro-batch",
        fix="--memory with more than that",
    )


def _within_deadline(
    options: Sequence[Option], deadline_s: float | None
) -> Sequence[Option]:
    if deadline_s is None:
        return options
    if deadline_s <= 0:
        raise SettingError("the deadline must be positive", seen=f"{deadline_s} s")
    known = [(o, o.seconds) for o in options if o.seconds is not None]
    if not known:
        raise UnidentifiedError(
            "the deadline cannot be judged: how long a run takes is not known",
            seen="no measuring run reached a target within the budget",
            why="gradient noise tells how batches compare, not how far the target is",
            fix="a Job with evaluate= and target=, and a larger --budget",
        )
    kept = [o for o, seconds in known if seconds.value <= deadline_s]
    if not kept:
        fastest, least = min(known, key=lambda pair: pair[1].value)
        raise UnidentifiedError(
            "no batch size meets the deadline",
            seen=f"the fastest, B = {fastest.batch_size}, needs {least} of "
            f"{deadline_s:g} s",
            why="the target, not the batch, sets the least time on this machine",
            fix="a later deadline, or a faster machine",
        )
    return kept


def _regret(
    laws: Laws, options: Sequence[Option], chosen: Option, objective: Objective
) -> float:
    index = next(i for i, o in enumerate(options) if o is chosen)
    allowance = 1.0
    draws = laws.time_draws(options)
    if isinstance(objective, Examples):
        draws, allowance = laws.example_draws(options), 1 + objective.tolerance
    elif not _is_time(laws, objective):
        draws = laws.energy_draws(options)
    excess = draws[:, index] / draws.min(axis=1) / allowance
    return float(np.quantile(np.maximum(excess, 1.0), SURE))
