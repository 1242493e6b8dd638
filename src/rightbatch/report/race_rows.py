"""The settings of a race as a table has them: the best first, then who fell out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rightbatch.core.estimate import Estimate
from rightbatch.core.units import show_number
from rightbatch.plan.choice import Choice
from rightbatch.plan.raced import Raced, Standing

LEFT_BEHIND = "left behind"


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceRow:
    """One setting of a race.

    Attributes:
        standing: What the race found of it.
        trained_s: How long its longest run trained, in seconds by the law of step time.
        best: The best metric of its runs; NaN where none was finite.
        failed: Whether one of them ran out of memory, or failed in the job's code.
        cost: What the objective counts, over that of the `reference`.
        is_chosen: Whether it is the choice.
        is_today: Whether it is today's.
    """

    standing: Standing
    trained_s: float
    best: float
    failed: bool
    cost: Estimate
    is_chosen: bool
    is_today: bool

    @property
    def reached(self) -> bool:
        """Whether a run of it got to the last level, by which settings are compared."""
        return self.standing.runs > 0

    @property
    def fate(self) -> str:
        """What became of runs that did not get there; empty where all of them did."""
        standing = self.standing
        if self.reached:
            return f"{standing.diverged} diverged" if standing.diverged else ""
        if standing.diverged:
            return "diverged"
        if self.failed:
            return "failed"
        return LEFT_BEHIND if standing.lanes else "not run"

    @property
    def fate_in_full(self) -> str:
        """The same, with how far it had come."""
        if self.fate == LEFT_BEHIND and math.isfinite(self.best):
            return f"{LEFT_BEHIND} at {show_number(self.best)}"
        return self.fate


def race_rows(choice: Choice, raced: Raced) -> list[RaceRow]:
    """Every setting: by cost where they got to the last level, then by what is likely.

    Args:
        choice: What was chosen.
        raced: Its race.
    """
    race = choice.measurements.race
    assert race is not None, "without a race nothing was raced"
    against = raced.standings.index(reference(raced))
    better = max if race.goal == "max" else min
    chosen = (choice.chosen.batch_size, choice.chosen.lr)
    rows = []
    for i, standing in enumerate(raced.standings):
        setting = (standing.batch_size, standing.lr)
        lanes = [x for x in race.lanes if (x.batch_size, x.lr) == setting]
        metrics = [m for lane in lanes for m in lane.metrics if math.isfinite(m)]
        rows.append(
            RaceRow(
                standing=standing,
                trained_s=max((lane.seconds for lane in lanes), default=0.0),
                best=better(metrics, default=math.nan),
                failed=any(lane.end == "failed" for lane in lanes),
                cost=_over(raced, i, against),
                is_chosen=setting == chosen,
                is_today=i == 0,
            )
        )
    # Of one that never got there the cost is what the law expects of it.
    rows.sort(key=lambda r: (not r.reached, r.fate == "diverged", r.cost.value))
    return rows


def reference(raced: Raced) -> Standing:
    """The setting that counts as 1: today's, or the best if today's never got there."""
    today = raced.standings[0]
    return today if today.runs else raced.standings[int(raced.means.argmin())]


def last_level(choice: Choice) -> float:
    """The value of the metric by which settings are compared: the target, if met."""
    passages = choice.laws.passages
    assert passages is not None, "without a race there are no levels"
    return passages.levels[-1]


def _over(raced: Raced, place: int, against: int) -> Estimate:
    """One setting's cost over another's, by the race alone."""
    if place == against:
        return Estimate.exact(1.0)
    logs = raced.log_costs[:, place] - raced.log_costs[:, against]
    return Estimate.from_draws(
        math.exp(float(np.median(logs))),
        np.exp(logs).tolist(),
        unit="",
        n=raced.standings[place].runs,
        method="law of batch and rate with the runs of the race",
    )
