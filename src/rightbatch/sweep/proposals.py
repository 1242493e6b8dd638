"""What a study tries next, and for how long: by the law of all trials so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rightbatch.fit.passages import passages_of
from rightbatch.fit.rate_law import RatePrior
from rightbatch.fit.standings import standings_of
from rightbatch.measure.measurements import Race
from rightbatch.tuning.lane import Setting
from rightbatch.tuning.race import FIELD, PATIENCE, law_so_far

# Where nothing has met the target, a trial may take so many times the measuring run;
# later twice as long after each so many trials, counted from one. [assumed]
FIRST, DOUBLED_AFTER = 8.0, 3
# Trials of these numbers have so many times today's batch, at its best rate by the law:
# so its N is seen early [measured: on a known law its interval then holds the truth in
# 24 studies of 24, without in 21; the best found is as good].
SPREAD = {6: 4.0, 7: 1 / 4, 9: 16.0}


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
    law = law_so_far(passages, prior)
    if number in SPREAD:
        wanted = prior.batch_size * SPREAD[number]
        size = min((b for b, _ in pairs), key=lambda b: abs(math.log(b / wanted)))
        lr = law.best_lr(size)
        rates = [s for s in settings if s.batch_size == size]
        beside = min(rates, key=lambda s: abs(math.log(s.lr / lr)))
        if (beside.batch_size, beside.lr) not in tried:
            return beside
    standings = standings_of(law, passages, pairs)
    random = np.random.default_rng(number)
    draw = standings.draws[random.integers(len(standings.draws))]
    costs = draw + np.log([s.step_s for s in settings])
    if len(tried) < FIELD:
        costs = np.where([pair in tried for pair in pairs], np.inf, costs)
    return settings[int(costs.argmin())]


def longest_s(race: Race, least_s: float) -> float:
    """Seconds after which a trial is hopeless.

    Args:
        race: All trials that are over.
        least_s: Of a run that says anything, while none has met the target.
    """
    reached = [lane.seconds for lane in race.lanes if lane.end == "target"]
    if reached:
        return PATIENCE * min(reached)
    return max(FIRST, 2.0 ** (len(race.lanes) // DOUBLED_AFTER)) * least_s
