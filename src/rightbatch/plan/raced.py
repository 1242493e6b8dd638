"""What a race found of every setting that reached its last level, in any objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rightbatch.core.estimate import Estimate
from rightbatch.fit.standings import Standings, standings_of
from rightbatch.measure.measurements import Measurements
from rightbatch.plan.laws import Laws
from rightbatch.plan.objectives import Energy, Examples, Objective

Array = Float[np.ndarray, "..."]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One setting of the race.

    Attributes:
        batch_size: Examples per step.
        micro_batch: Examples in memory at once, over all ranks.
        lr: Learning rate of the first param group.
        lanes: How often it was trained.
        runs: How often it reached the last level.
        failed: How often it did not, though trained as long.
        diverged: How often it diverged.
        seconds: To the last level, by law and runs together.
        cost: What the objective counts, over today's setting.
    """

    batch_size: int
    micro_batch: int
    lr: float
    lanes: int
    runs: int
    failed: int
    diverged: int
    seconds: Estimate
    cost: Estimate


@dataclass(frozen=True)
class Raced:
    """All settings of a race, today's first, with joint draws.

    Attributes:
        standings: One for every setting trained.
        log_costs: Log of what the objective counts to the last level, shape (draws,
            settings).
        lanes: Trainings in all.
    """

    standings: tuple[Standing, ...]
    log_costs: Array
    lanes: int

    @property
    def means(self) -> Array:
        """Log of the expected cost of every setting; infinite where none got there."""
        reached = np.array([s.runs > 0 for s in self.standings])
        return np.where(reached, np.log(np.exp(self.log_costs).mean(0)), math.inf)


def raced_of(
    measurements: Measurements, laws: Laws, objective: Objective, limit_bytes: float
) -> Raced | None:
    """Every setting that was trained; None where no race has come to any level.

    Each costs what its fastest split within the limit does, however it was raced: a
    split changes no steps. Today's is compared as it is, also where it does not fit.
    """
    race, passages = measurements.race, laws.passages
    if race is None or passages is None or not passages.levels:
        return None
    today = (laws.baseline, laws.baseline_lr)
    settings = list(dict.fromkeys([today, *((x.batch_size, x.lr) for x in race.lanes)]))
    splits = [
        laws.split(b, limit_bytes if i else None) or (b, 1)
        for i, (b, _) in enumerate(settings)
    ]
    step_s = [laws.time.step_seconds(*split) for split in splits]
    found = standings_of(laws.rate, passages, settings)
    log_costs = found.draws + np.log(unit_costs(laws, objective, splits))
    diverged = list(passages.diverged)
    return Raced(
        standings=tuple(
            Standing(
                batch_size=batch_size,
                micro_batch=splits[i][0],
                lr=lr,
                lanes=int(found.lanes[i]),
                runs=int(found.runs[i]),
                failed=int(found.failed[i]),
                diverged=diverged.count((batch_size, lr)),
                seconds=_estimate(found.draws[:, i] + math.log(step_s[i]), found, "s"),
                cost=_estimate(log_costs[:, i] - log_costs[:, 0], found, "")
                if i
                else Estimate.exact(1.0),
            )
            for i, (batch_size, lr) in enumerate(settings)
        ),
        log_costs=log_costs,
        lanes=len(race.lanes),
    )


def unit_costs(
    laws: Laws, objective: Objective, splits: Sequence[tuple[int, int]]
) -> Array:
    """What a step of each split costs, in what is to be least."""
    if isinstance(objective, Examples):
        return np.array([float(b * k) for b, k in splits])
    if isinstance(objective, Energy) and laws.energy is not None:
        return np.array([laws.energy.joules(*split) for split in splits])
    return np.array([laws.time.step_seconds(*split) for split in splits])


def _estimate(log_draws: Array, found: Standings, unit: str) -> Estimate:
    return Estimate.from_draws(
        math.exp(float(np.median(log_draws))),
        np.exp(log_draws).tolist(),
        unit=unit,
        n=int(found.runs.sum()),
        method="law of batch and rate with the runs of the race",
    )
