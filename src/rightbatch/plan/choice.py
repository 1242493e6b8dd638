"""Choosing a batch: the best by the laws, unless a race knows better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rightbatch.measure.measurements import Candidate, Measurements
from rightbatch.plan.evidence import (
    Evidence,
    candidate_of,
    evidence_for,
    race_settles,
)
from rightbatch.plan.laws import Laws, laws_of
from rightbatch.plan.objectives import Energy, Examples, Objective, Time, no_energy
from rightbatch.plan.options import (
    Option,
    best_option,
    cost,
    memory_limit,
    options_within,
    predict,
    within_deadline,
)
from rightbatch.schedules.scaling import Scaling, scaling_for

FLAT = 1.10  # batches within 10 % of the best count as equally good [assumed]
# The laws decide when, in 9 of 10 draws of all that is uncertain, the choice costs at
# most so much more than the best batch of that draw. [assumed]
TOLERATED, SURE = 1.30, 0.9


@dataclass(frozen=True)
class Choice:
    """A batch, everything it was chosen from, and how sure the choice is.

    Attributes:
        measurements: What was measured.
        laws: The laws fitted to it.
        objective: What was to be least.
        options: Every batch that fits, in order of size.
        chosen: The one taken.
        baseline: Today's batch, even where it does not fit.
        by_laws: What the laws alone would take.
        flat: Smallest and largest batch predicted within 10 % of the best.
        regret: What the laws' choice costs over the best, at the 90th percentile.
        sure: Whether that is little enough, or a race has told it from the others.
        evidence: What a race said of it against the baseline.
        decided_by: ``"laws"`` or ``"race"``.
        scaling: How the optimizer's numbers follow from today's.
        limit_bytes: Memory the options had to fit in.
        deadline_s: Seconds to the target they had to keep, if any.
    """

    measurements: Measurements
    laws: Laws
    objective: Objective
    options: tuple[Option, ...]
    chosen: Option
    baseline: Option
    by_laws: Option
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
        return candidate_of(self.measurements, self.chosen)


def choose(
    measurements: Measurements,
    objective: Objective | None = None,
    *,
    deadline_s: float | None = None,
    memory_bytes: float | None = None,
    rule: str = "auto",
) -> Choice:
    """Choose batch, split and learning rate from measurements; measure nothing.

    Args:
        measurements: A race in them overrules the laws where they disagree.
        objective: What is to be least; default `Time`.
        deadline_s: Seconds to the target that must not be exceeded.
        memory_bytes: Bytes a step may take; default 90 % of what was free.
        rule: How the learning rate follows, see `schedules.scaling.scaling_for`.

    Raises:
        SettingError: A limit is not positive, or no batch fits in memory.
        UnidentifiedError: Something needed was not measured, the deadline cannot be
            judged because no run has reached the target, or no batch keeps it.
    """
    objective = objective or Time()
    limit = memory_limit(measurements, memory_bytes)
    laws = laws_of(measurements)
    if isinstance(objective, Energy) and objective.watts is None and not laws.energy:
        raise no_energy("none was measured")
    options = options_within(laws, measurements.job.examples, limit)
    baseline = predict(laws, laws.baseline, None)
    assert baseline is not None, "today's batch was run, so it has a split"
    allowed = within_deadline(options, deadline_s)
    by_laws = best_option(allowed, objective)
    in_time = _counts_time(laws, objective)
    chosen = _race_choice(measurements, allowed, by_laws) if in_time else by_laws
    candidate = candidate_of(measurements, chosen)
    settled = in_time and race_settles(measurements, candidate)
    bounded = math.isfinite(laws.noise.critical_batch.value)
    regret = _regret(laws, allowed, by_laws, objective)
    best = min(cost(o, objective) for o in allowed)
    flat = [o.batch_size for o in allowed if cost(o, objective) <= FLAT * best]
    return Choice(
        measurements=measurements,
        laws=laws,
        objective=objective,
        options=options,
        chosen=chosen,
        baseline=baseline,
        by_laws=by_laws,
        flat=(flat[0], flat[-1]),
        regret=regret,
        sure=(regret <= TOLERATED and bounded) or settled,
        evidence=evidence_for(measurements, options, chosen, by_laws),
        decided_by="laws" if chosen is by_laws else "race",
        scaling=scaling_of(measurements, laws, chosen.batch_size, rule),
        limit_bytes=limit,
        deadline_s=deadline_s,
    )


def scaling_of(
    measurements: Measurements, laws: Laws, batch_size: int, rule: str = "auto"
) -> Scaling:
    """How the job's optimizer follows to a batch, with the noise that was measured."""
    critical = laws.noise.critical_batch
    # Without an upper bound, what is at least known of it: that rate is the safer one.
    noise = critical.value if math.isfinite(critical.value) else critical.low
    return scaling_for(
        measurements.job.family,
        laws.baseline,
        batch_size,
        rule=rule,
        noise_scale=noise,
        decoupled_decay=measurements.job.decoupled_decay,
    )


def _counts_time(laws: Laws, objective: Objective) -> bool:
    """Whether the objective is time in another unit, so that a race can settle it."""
    if isinstance(objective, Energy):
        return laws.energy is None
    return not isinstance(objective, Examples)


def _race_choice(
    measurements: Measurements, allowed: Sequence[Option], by_laws: Option
) -> Option:
    """The laws' choice, unless another candidate was clearly faster in the race."""
    favourite = candidate_of(measurements, by_laws)
    if favourite is None or measurements.race is None:
        return by_laws
    winner = max(measurements.race.candidates, key=lambda c: c.speedup.value)
    if winner.speedup.low <= favourite.speedup.high:
        return by_laws  # the race does not tell them apart
    won = (o for o in allowed if candidate_of(measurements, o) is winner)
    return next(won, by_laws)


def _regret(
    laws: Laws, options: Sequence[Option], chosen: Option, objective: Objective
) -> float:
    """How many times the best option's cost the chosen one has, at the 90th percentile.

    In every draw of the laws, over the best option of that draw.
    """

    def cost_of(option: Option, draw: int) -> float:
        split = option.micro_batch, option.accumulation
        if isinstance(objective, Examples):
            step = float(option.batch_size)
        elif isinstance(objective, Energy) and laws.energy is not None:
            step = laws.energy.joules(*split, draw)
        else:
            step = laws.time.step_seconds(*split, draw)
        return laws.steps(option.batch_size, draw) * step

    draws = range(len(laws.noise.draws))
    costs = np.array([[cost_of(o, draw) for o in options] for draw in draws])
    allowance = 1 + objective.tolerance if isinstance(objective, Examples) else 1.0
    index = next(i for i, o in enumerate(options) if o is chosen)
    excess = costs[:, index] / costs.min(axis=1) / allowance
    return float(np.quantile(np.maximum(excess, 1.0), SURE))
