"""What a study tries next, and for how long: by the law of all trials so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rightbatch.fit.passages import passages_of
from rightbatch.fit.rate_law import RatePrior, fit_rate_law
from rightbatch.fit.standings import standings_of
from rightbatch.measure.measurements import Race
from rightbatch.tuning.lane import Setting
from rightbatch.tuning.race import BELOW, BRACKET, FIELD, PATIENCE

# Where nothing has met the target, so many trials more may each take twice as long; a
# plan may take so many times as long as others then. [assumed]
DOUBLED_AFTER, PLANNED = 3, 8.0
# Trials of these numbers are at so many times today's batch and rate, or at the best
# rate of the batch by the law: what a large batch takes is to be seen early. [assumed]
BRACKETS: dict[int, tuple[float, float | None]] = {
    2: (1.0, BRACKET[0]),
    3: (1.0, BRACKET[1]),
    6: (4.0, None),
    7: (1 / 4, None),
    9: (16.0, None),
}


def proposal(
    race: Race, prior: RatePrior, settings: Sequence[Setting], number: int
) -> Setting:
    """The best setting of one draw of all that is uncertain (Thompson sampling).

    Args:
        race: All trials that are over, as its lanes.
        prior: What the noise lets expect of the law.
        settings: What may be tried; the first is today's.
        number: Of the trial; workers that ask at once try different settings.
    """
    pairs = [(s.batch_size, s.lr) for s in settings]
    tried = {(lane.batch_size, lane.lr) for lane in race.lanes}
    passages = passages_of(race)
    if passages.diverged and not passages.levels:
        lowest = min(lr for _, lr in passages.diverged)
        prior = replace(prior, lr_excess=math.log(BELOW * prior.lr / lowest))
    law = fit_rate_law(passages, prior)
    if number in BRACKETS:  # of rates first: where today's is far off, so is the law
        size, rate = BRACKETS[number]
        size = min({b for b, _ in pairs}, key=_off(prior.batch_size * size))
        lr = law.best_lr(size) if rate is None else prior.lr * rate
        rates = [s for s in settings if s.batch_size == size]
        beside = min(rates, key=lambda s: _off(lr)(s.lr))
        if (beside.batch_size, beside.lr) not in tried:
            return beside
    standings = standings_of(law, passages, pairs)
    random = np.random.default_rng(number)
    draw = standings.draws[random.integers(len(standings.draws))]
    costs = draw + np.log([s.step_s for s in settings])
    if len(tried) < FIELD:
        costs = np.where([pair in tried for pair in pairs], np.inf, costs)
    return settings[int(costs.argmin())]


def _off(value: float) -> Callable[[float], float]:
    """How far numbers are from a value, in logs."""
    return lambda other: abs(math.log(other / value))


def longest_s(race: Race, least_s: float, *, planned: bool) -> float:
    """Seconds after which a trial is hopeless.

    Args:
        race: All trials that are over.
        least_s: What the first may take, while none has met the target.
        planned: Whether the trial is of a plan.
    """
    reached = [lane.seconds for lane in race.lanes if lane.end == "target"]
    if reached:
        return PATIENCE * min(reached)
    factor = PLANNED if planned else 2.0 ** (len(race.lanes) // DOUBLED_AFTER)
    return factor * least_s
