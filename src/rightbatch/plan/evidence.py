"""How far a race went, and what that proves: laws alone are worth trying, no more."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rightbatch.core.units import show_number
from rightbatch.fit.passages import Curve
from rightbatch.measure.measurements import Measurements, Race
from rightbatch.plan.laws import Laws

# A race of a smaller share of a run proves nothing about the whole: at a quarter what
# was picked could miss the target altogether, at a twentieth it was up to 5 x off.
# [measured on five grids]
LEAST_SHARE = 0.5
# Raced for a smaller share of a run is no ground for advice. [assumed; a twentieth of a
# run picked settings up to 5 x off on five grids]
LEAST_ADVICE = 0.05
# Passes over the data that a run takes where nothing says how long it is. Long, so that
# a race has to be long: the doubt is on the side of "worth trying". [assumed]
PASSES = 10
MOST_DOUBLINGS = 6.0  # of what was raced; farther no trend is followed [assumed]
# One call of ``evaluate`` is taken for a race's metric up to this share of the budget:
# a race makes some hundred calls. [assumed]
LONGEST_EVALUATION = 1 / 500
# Scatter that a race of a share of a run adds to a log ratio of whole runs: standard
# deviation. [measured: docs/benchmarks.md, regret against the share raced]
SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
SHORTFALL = (0.6, 0.5, 0.35, 0.25, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """How far a race went.

    Attributes:
        grade: ``"raced to the target"``, ``"raced for 30 % of a run"`` or ``"laws
            only"``.
        share: Share of a run that was raced; 0 without a race.
        run_s: Seconds of a whole run by the best setting, as far as known.
        known: Whether that is known, not taken from ``PASSES`` over the data.
    """

    grade: str
    share: float
    run_s: float
    known: bool

    @property
    def enough(self) -> bool:
        """Whether so much of a run, whose length is known, can prove anything of it."""
        return self.known and self.share >= LEAST_SHARE

    @property
    def shortfall(self) -> float:
        """What is added to a log ratio, for the part of a run that was not raced."""
        share = max(self.share, SHARES[0])
        return float(np.interp(math.log(share), np.log(SHARES), SHORTFALL))


def evidence_of(measurements: Measurements, laws: Laws) -> Evidence:
    """How far the race went, against how long a run is."""
    job, race, passages = measurements.job, measurements.race, laws.passages
    today_s = laws.step_s(job.batch_size) / job.batch_size  # an example
    run_examples = job.run_examples or PASSES * job.examples
    known = job.run_examples is not None and job.target is None
    whole = run_examples * today_s
    if laws.steps_to_target is not None:
        whole, known = laws.steps_to_target * laws.step_s(job.batch_size), True
    if race is None or passages is None or not passages.levels:
        return Evidence(grade="laws only", share=0.0, run_s=whole, known=known)
    raced = passages.seconds[-1]
    if passages.to_target:
        grade = "raced to the target"
        return Evidence(grade=grade, share=1.0, run_s=raced, known=True)
    if race.target is not None:
        doublings = doublings_left(race, raced)
        known = doublings <= MOST_DOUBLINGS
        far = raced * 2.0 ** min(doublings, MOST_DOUBLINGS)
        # A trend seen for a moment is no promise, where the length of a run is said.
        whole = far if known and job.run_examples is None else max(whole, far)
    share = min(raced / whole, 1.0)
    shown = show_number(100 * share) if share < 0.1 else f"{100 * share:.0f}"
    grade = f"raced for {'' if known else 'some '}{shown} % of a run"
    return Evidence(grade=grade, share=share, run_s=whole, known=known)


def doublings_left(race: Race, seconds: float) -> float:
    """How often the race would have to be doubled to reach the target, by its trend.

    What a doubling of time gains is taken to shrink by one factor each time, as from
    the last but one doubling to the last; infinite where the sum falls short.
    """
    sign = 1.0 if race.goal == "min" else -1.0
    curves = [Curve(race, lane) for lane in race.lanes]
    ends = [min(curve.best(seconds / 2**i) for curve in curves) for i in (0, 1, 2)]
    target = sign * (race.target if race.target is not None else -math.inf)
    left, gained, before = ends[0] - target, ends[1] - ends[0], ends[2] - ends[1]
    if left <= 0:
        return 0.0
    if gained <= 0 or before <= 0:
        return math.inf
    shrink = min(gained / before, 1.0)
    if shrink > 1 - 1e-6:
        return left / gained
    # gained * (shrink + shrink^2 + ... + shrink^n) = left
    rest = 1 - left * (1 - shrink) / (gained * shrink)
    return math.log(rest) / math.log(shrink) if rest > 0 else math.inf
