"""The race: a search for batch and learning rate by training, deeper and deeper.

All candidates start from one state and see the same stream, each cutting it by its own
batch. Rungs of doubling length halve the field; half of each is new: the
law of batch and rate, fitted to everything trained so far, says what to try (Thompson
sampling: a candidate is taken as often as it may be the best). When the target is met,
or the budget allows no longer rung, the best are repeated, with other initial weights
on other streams, until they are told apart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from rightbatch.core.errors import JobError
from rightbatch.fit.passages import Passages, passages_of
from rightbatch.fit.rate_law import RateLaw, RatePrior, fit_rate_law
from rightbatch.fit.standings import Standings, luck, standings_of
from rightbatch.measure.held_out_loss import metric_of
from rightbatch.measure.measurements import MetricPoint, Race
from rightbatch.plan.choice import (
    BEYOND,
    LEAST_ARRIVE,
    MOST_LUCK,
    SURE,
    TOLERATED,
)
from rightbatch.plan.evidence import MOST_DOUBLINGS, doublings_left
from rightbatch.training.run_state import RunState, Snapshot
from rightbatch.tuning.lane import LaneRun, Setting, train_lane

# The first rung takes this share of the budget a lane, but so many steps of today's at
# the least; others must have so many in a rung to enter it. [assumed]
FIRST_RUNG, LEAST_STEPS = 1 / 400, 10
FIELD, LEAST_FIELD = 10, 3  # candidates in the first rung; in any [assumed]
DEPTH = 0.25  # of the time, at most, for the first rung: depth before width [assumed]
RUNG_SHARE = 0.6  # of what is left, at most, for one more rung [assumed]
# A run ends at so many times what the best takes to the target; one that is to be
# better, at so many times what was hoped of it. [assumed]
PATIENCE = 2.0
NEAR = 4.0  # today's setting is repeated where it is within so much [assumed]
# Runs of the best, and of today's that reach the last level, on as many streams,
# before a race ends; of both, where that does not tell them apart. [assumed]
REPEATS, TODAYS, MOST_REPEATS = 4, 2, 12
# First are tried, at today's batch, rates so many times today's: where that is far off,
# what the law expects is too. [assumed]
BRACKET = (1 / 8, 8.0)
# A leader that by its trend never meets the target, or meets it by luck, is followed by
# so much of its rate: what bounces at high rates comes down at lower ones. [assumed]
LOWERED = 1 / 4
BELOW = 8.0  # where all has diverged, so far below the lowest is looked next [assumed]
SETTLED = 0.05  # expected gain of going on, below which the race ends [assumed]


class Racing:
    """A race under way.

    Args:
        run: What is trained; it is left somewhere else.
        start: The common start.
        held_out: Examples to compare by their loss; None for the job's ``evaluate``.
        settings: Every candidate there may be; the first is today's.
        prior: What the law is believed to be before.
        metric_s: Seconds of one evaluation.
        unit_costs: What one step of each setting costs, in what is to be least.
        from_scratch: Whether the start is the job's initial weights: then runs of
            another stream have other ones too.
        most_states: Copies of model and optimizer that may be kept at once.
        tick: Called with a few words before every lane.
    """

    def __init__(
        self,
        run: RunState,
        start: Snapshot,
        held_out: torch.Tensor | None,
        settings: Sequence[Setting],
        prior: RatePrior,
        *,
        metric_s: float,
        unit_costs: Sequence[float],
        from_scratch: bool = True,
        most_states: int = FIELD,
        tick: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.from_scratch, self.most_states = from_scratch, most_states
        self.run, self.start, self.held_out = run, start, held_out
        self.settings, self.prior, self.metric_s = settings, prior, metric_s
        self.log_cost = np.log(np.asarray(unit_costs, float))
        self.tick = tick
        self.lanes: list[LaneRun] = []
        self.started = time.monotonic()
        self.trained_s = self.spent_s = 0.0  # by the law; in truth
        self.start_metric = math.nan
        self.target = run.job.target if held_out is None else None
        self._random = np.random.default_rng(run.job.seed)

    def take_in(self, metrics: Sequence[MetricPoint], *, diverged: bool) -> None:
        """Begin with the measuring run, as it stands, as the first lane of today's.

        Args:
            metrics: Along it.
            diverged: Whether it did: then today's setting begins anew.

        Raises:
            JobError: The target is met at the start, or the job's code failed.
        """
        run, lane = self.run, self._begin(self.today)
        length = run.job.run_examples
        if metrics and not diverged:
            lane.steps = [point.step - self.start.steps for point in metrics]
            lane.metrics = [point.metric for point in metrics]
            if run.steps > metrics[-1].step:
                lane.steps.append(run.steps - self.start.steps)
                lane.metrics.append(metric_of(run, self.held_out))
            lane.state = run.snapshot()
        whole = bool(lane.metrics and length and run.examples >= length)
        run.rewind(self.start, seed=run.job.seed)
        self.start_metric = metric_of(run, self.held_out)
        if self.met(self.start_metric):
            raise JobError(
                "the target is already met where the race starts",
                seen=f"evaluate(model) = {self.start_metric:.4g}, "
                f"target {self.target:.4g}",
                why="there is nothing to train",
                fix="a target ahead of it, or a checkpoint from before",
            )
        if whole and self.target is None:  # the result of today's run, sooner
            result, began = lane.metrics[-1], self.start_metric
            self.target = result if self._sign * (result - began) < 0 else None
        if lane.metrics and self.met(lane.metrics[-1]):
            lane.end, lane.state = "target", None

    def met(self, metric: float) -> bool:
        """Whether a metric is at the target or beyond it."""
        if self.target is None or not math.isfinite(metric):
            return False
        return self._sign * metric <= self._sign * self.target

    @property
    def _sign(self) -> float:
        """-1 where higher metrics are better."""
        by_evaluate = self.held_out is None
        return -1.0 if by_evaluate and self.run.job.goal == "max" else 1.0

    @property
    def today(self) -> Setting:
        """Today's setting."""
        return self.settings[0]

    def race(self) -> Race:
        """What has been raced so far, as a plain value."""
        job, by_evaluate = self.run.job, self.held_out is None
        return Race(
            metric="evaluate" if by_evaluate else "held-out loss",
            goal=job.goal if by_evaluate else "min",
            start=self.start_metric,
            target=self.target,
            lanes=tuple(lane.lane() for lane in self.lanes),
            seconds=time.monotonic() - self.started,
        )

    def search(self, ends: float) -> None:
        """Race until the best is told from the rest, or until this monotonic time."""
        self._ends = ends
        horizon = FIRST_RUNG * self._left_s()
        horizon = max(horizon, LEAST_STEPS * self.today.step_s)
        lanes = self._left_s() / (
            self._price() * horizon
        )  # of one rung, if it were all
        field = min(self.most_states, FIELD, max(LEAST_FIELD, int(DEPTH * lanes)))
        while not self._reached(horizon / 2):
            affordable = RUNG_SHARE * self._left_s() / (self._price() * horizon)
            if min(field, affordable) < LEAST_FIELD:
                break
            self._rung(horizon, min(field, int(affordable)))
            field = max(LEAST_FIELD, round(field / 2))
            horizon *= 2
        for lane in self.lanes:
            lane.state = None  # from here on runs are whole ones
        while self._repeat():
            self.lanes[-1].state = None

    # The two moves: a rung, and one more run.

    def _rung(self, horizon: float, field: int) -> None:
        """Train a field of candidates to the horizon: half old, half new."""
        survivors = self._best_open(-(-field // 2))
        for lane in survivors:
            if self._left_s() > 0:
                self._train(lane, horizon)
        for _ in range(field - len(survivors)):
            if self._reached(horizon) or self._left_s() <= 0:
                return
            place = self.run.ranks.from_first(self._new(horizon))
            if place is not None:
                self._train(self._begin(self.settings[place]), horizon)

    def _repeat(self) -> bool:
        """One more run, of what it pays most to know; False where nothing pays."""
        left_s = self._left_s()
        # The first rank's, for fits may differ in their last bits.
        place, limit = self.run.ranks.from_first(self._wanted(left_s))
        if place is not None:
            self._train(self._begin(self.settings[place]), limit)
        return place is not None

    def _wanted(self, left_s: float) -> tuple[int | None, float]:
        """Place of the setting to run once more, and for how long at the most."""
        standings, passages = self.standings()
        horizon = math.inf if passages.to_target else self._trained_to()
        costs = standings.draws + self.log_cost
        tried = int((standings.lanes > 0).sum())
        if not standings.runs.any() or (tried < LEAST_FIELD and not passages.to_target):
            return None, 0.0
        mean, best, place = costs.mean(0), self._leader(standings), None
        tries = standings.runs + standings.failed
        gain = float((costs[:, best] - costs.min(1)).mean())
        near_today = costs[:, 0].mean() - mean[best] < math.log(NEAR)
        step_s = np.array([s.step_s for s in self.settings])
        run_s = np.exp(standings.draws.mean(0)) * step_s
        leader_s, today_s = run_s[best], min(run_s[0], NEAR * run_s[best])
        enough = REPEATS if best else TODAYS
        missing = max(enough - int(standings.lanes[best]), 0)
        more_todays = near_today and standings.lanes[0] < REPEATS
        todays = max(TODAYS - int(standings.runs[0]), 0) if more_todays else 0
        # Both must be repeated in time; until then, what may be better is tried.
        kept_s = leader_s * missing + today_s * todays
        spare_s = left_s / self._price() - kept_s
        limit = PATIENCE * leader_s if passages.to_target else horizon
        open_question = tried < FIELD or gain > SETTLED
        if self.target is not None and not passages.to_target:
            place = self._new(horizon)  # short of it, repeats prove nothing
        elif passages.to_target and open_question and spare_s > leader_s:
            place, hoped_s = self._drawn(standings, horizon, new=tried < FIELD)
            limit = min(limit, spare_s, PATIENCE * hoped_s)
        elif missing:
            place = best
        elif todays:
            place = 0
        elif gain > SETTLED:
            place, _ = self._drawn(standings, horizon, new=False)
        elif not passages.to_target:
            place = None
        elif more_todays:
            place = 0  # what everything is compared with
        elif standings.failed[best] > (1 - LEAST_ARRIVE) * tries[best]:
            place = self._beside(self.settings[best], LOWERED)  # it arrives by luck
        elif luck(standings.runs.tolist(), standings.failed.tolist(), best) > MOST_LUCK:
            place = best if standings.lanes[best] < MOST_REPEATS else None
        elif near_today and _untold(costs, best):
            rarer = min((best, 0), key=standings.lanes.__getitem__)
            place = rarer if standings.lanes[rarer] < MOST_REPEATS else None
        if place is None:
            return None, 0.0
        if place == 0:  # today's, if it is near, as long as it takes
            limit = max(limit, PATIENCE * today_s)
        fits = self._price() * min(limit, run_s[place]) <= left_s
        return (place if fits else None), limit

    # What these go by.

    def standings(self) -> tuple[Standings, Passages]:
        """Law and runs together, for every setting, at the last level."""
        passages = passages_of(self.race())
        law = law_so_far(passages, self.prior)
        pairs = [(s.batch_size, s.lr) for s in self.settings]
        return standings_of(law, passages, pairs), passages

    def _drawn(
        self, standings: Standings, horizon: float, *, new: bool
    ) -> tuple[int | None, float]:
        """Place of the best setting of one draw of all that is uncertain, its time."""
        row = int(self._random.integers(len(standings.draws)))
        costs = standings.draws[row] + self.log_cost
        steps = np.array([s.step_s for s in self.settings])
        costs = np.where(LEAST_STEPS * steps > horizon, np.inf, costs)
        if new:
            trained = {id(lane.setting) for lane in self.lanes}
            tried = np.array([id(s) in trained for s in self.settings])
            costs = np.where(tried, np.inf, costs)
        place = int(costs.argmin())
        if not math.isfinite(costs[place]):
            return None, 0.0
        return place, math.exp(standings.draws[row, place]) * steps[place]

    def _new(self, horizon: float) -> int | None:
        """Place of a setting to try first: by the law, if no plain reason speaks."""
        place = None
        if len(self.lanes) <= len(BRACKET):
            place = self._beside(self.today, BRACKET[len(self.lanes) - 1])
        else:
            standings, passages = self.standings()
            if self.target is not None and not passages.to_target and passages.levels:
                leader = self._leader(standings)
                left = doublings_left(self.race(), self._trained_to())
                if left > MOST_DOUBLINGS:
                    place = self._beside(self.settings[leader], LOWERED)
        if place is None or LEAST_STEPS * self.settings[place].step_s > horizon:
            place, _ = self._drawn(self.standings()[0], horizon, new=True)
        return place

    def _beside(self, setting: Setting, factor: float) -> int | None:
        """Place of a batch at about so many times the rate; None where it was tried."""
        off = [
            abs(math.log(s.lr / setting.lr / factor))
            if s.batch_size == setting.batch_size
            else math.inf
            for s in self.settings
        ]
        place = int(np.argmin(off))
        tried = any(lane.setting is self.settings[place] for lane in self.lanes)
        return None if tried else place

    def _leader(self, standings: Standings) -> int:
        """Place of the best of those that reached the last level."""
        mean = (standings.draws + self.log_cost).mean(0)
        return int(np.where(standings.runs > 0, mean, np.inf).argmin())

    def _best_open(self, count: int) -> list[LaneRun]:
        """The lanes that go on: today's first one, and the best of the others."""
        lanes = [lane for lane in self.lanes if lane.open]
        if len(self.lanes) == 1:
            return lanes
        standings, _ = self.standings()
        mean = (standings.draws + self.log_cost).mean(0)
        place = {id(s): i for i, s in enumerate(self.settings)}
        mean = self.run.ranks.from_first(mean.tolist())  # alike to the last bit
        lanes.sort(key=lambda lane: mean[place[id(lane.setting)]])
        own = [lane for lane in lanes if lane.setting is self.today]
        kept = [*own, *(x for x in lanes if x not in own)][: count + len(own)]
        for lane in lanes:
            if all(lane is not x for x in kept):
                lane.state = None  # nothing goes on from it
        return kept

    def _begin(self, setting: Setting) -> LaneRun:
        number = sum(lane.setting is setting for lane in self.lanes)
        lane = LaneRun(setting, self.run.job.seed + 1000 * number)
        self.lanes.append(lane)
        return lane

    def _train(self, lane: LaneRun, seconds: float) -> None:
        setting = lane.setting
        self.tick(f"B = {setting.batch_size}, lr {setting.lr:.3g}")
        before, clock = lane.seconds, time.monotonic()
        train_lane(
            self.run,
            self._start_of(lane),
            lane,
            seconds,
            held_out=self.held_out,
            metric_s=self.metric_s,
            met=self.met,
            late=lambda: self._left_s() <= 0,
        )
        self.trained_s += lane.seconds - before
        self.spent_s += self.run.ranks.first(time.monotonic() - clock)

    def _start_of(self, lane: LaneRun) -> Snapshot:
        """The common start; for a repeat, of other initial weights."""
        if not self.from_scratch or lane.seed == self.run.job.seed or lane.steps:
            return self.start
        return self.run.with_other_weights(self.start, lane.seed)

    def _reached(self, horizon: float) -> bool:
        """Whether a lane has met the target within the length of a rung."""
        return any(x.end == "target" and x.seconds <= horizon for x in self.lanes)

    def _trained_to(self) -> float:
        """How long the second longest lane has trained."""
        return (sorted(lane.seconds for lane in self.lanes)[-2:] or [0.0])[0]

    def _left_s(self) -> float:
        return self.run.ranks.first(self._ends - time.monotonic())

    def _price(self) -> float:
        """Wall seconds of a second by the law, evaluations and forks included."""
        return (self.spent_s + 0.2) / (self.trained_s + 0.15)


def law_so_far(passages: Passages, prior: RatePrior) -> RateLaw:
    """The law of a race; where all has diverged, it looks far below that."""
    if passages.diverged and not passages.levels:
        lowest = min(lr for _, lr in passages.diverged)
        prior = replace(prior, lr_excess=math.log(BELOW * prior.lr / lowest))
    return fit_rate_law(passages, prior)


def _untold(costs: Float[np.ndarray, "draws settings"], best: int) -> bool:
    """Whether neither the best is surely better than today's, nor today's as good."""
    if best == 0:
        return False
    gain = costs[:, 0] - costs[:, best]
    sure = float(gain.mean()) > 1.96 * math.hypot(float(gain.std()), BEYOND)
    lost = float(np.quantile(costs[:, 0] - costs.min(1), SURE))
    return not sure and lost > math.log(TOLERATED)
