"""When each run of a race first was as good as some common levels of its metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rightbatch.measure.measurements import Lane, Race

# Levels are where the leader stood after these shares of the race. The last is not 1,
# so that others than the leader reach it too. [assumed]
SHARES = (1 / 8, 1 / 4, 1 / 2, 0.8)
# A lane that diverged would have taken more than so many times the leader's time: a
# bound, for the law; how much more makes no difference. [assumed]
DIVERGED = 3.0
LEAST_STEPS = 4  # updates of the leader below which a level says nothing [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A run's passage of one level.

    Attributes:
        batch_size: Of the run.
        lr: Of the run.
        seed: Of the run's stream.
        level: Number of the level, from 0, the easiest.
        steps: Updates it took; where it did not reach the level, those it made.
        reached: Whether it did; else ``steps`` is a lower bound.
    """

    batch_size: int
    lr: float
    seed: int
    level: int
    steps: float
    reached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Passages:
    """All passages of a race.

    Attributes:
        levels: Values of the metric, each better than the one before.
        seconds: When the leader reached each.
        to_target: Whether the last level is the job's target.
        passages: Of every lane, every level.
        diverged: Batch and learning rate of the lanes that diverged.
    """

    levels: tuple[float, ...]
    seconds: tuple[float, ...]
    to_target: bool
    passages: tuple[Passage, ...]
    diverged: tuple[tuple[int, float], ...] = ()

    @property
    def deepest(self) -> tuple[Passage, ...]:
        """Passages of the last level, by which candidates are compared."""
        last = len(self.levels) - 1
        return tuple(p for p in self.passages if p.level == last)


class Curve:
    """The best value so far of one lane, by steps; less is better.

    Args:
        race: Whose start the curve begins at.
        lane: The lane.
    """

    def __init__(self, race: Race, lane: Lane) -> None:
        sign = 1.0 if race.goal == "min" else -1.0
        self.step_s = lane.step_s
        self.steps: list[float] = [0.0]
        self.values: list[float] = [_start(race)]
        for step, value in zip(lane.steps, lane.metrics, strict=True):
            better = sign * value if math.isfinite(value) else math.inf
            self.steps.append(step)
            self.values.append(min(self.values[-1], better))

    def steps_to(self, level: float) -> float:
        """Updates to a value, interpolated between evaluations; infinite if never."""
        for i, value in enumerate(self.values):
            if value <= level:
                if i == 0:
                    return 0.0
                before, s0, s1 = self.values[i - 1], self.steps[i - 1], self.steps[i]
                if not math.isfinite(before) or before <= value:
                    return s1
                share = (before - level) / (before - value)
                return max(s0 + (s1 - s0) * share, 1.0)  # an update, at the least
        return math.inf

    def best(self, seconds: float) -> float:
        """The best value at an evaluation up to a time."""
        found = self.values[0]
        for step, value in zip(self.steps, self.values, strict=True):
            if step * self.step_s <= seconds * (1 + 1e-9):
                found = value
        return found


def passages_of(race: Race) -> Passages:
    """Levels along the leading curve, and when every lane passed them.

    The leader is, at every moment, whoever is best then. The last level is the job's
    target if any lane reached it; else what the leader was worth after four fifths of
    the time that two lanes at least have trained.
    """
    sign = 1.0 if race.goal == "min" else -1.0
    curves = [Curve(race, lane) for lane in race.lanes]
    target = None if race.target is None else sign * race.target
    whole = _seconds_to(curves, target) if target is not None else math.inf
    to_target = math.isfinite(whole)
    longest = sorted(lane.seconds for lane in race.lanes if lane.end != "diverged")
    horizon = whole if to_target else (longest[-2:] or [0.0])[0]
    levels: list[float] = []
    for share in SHARES:
        level = min((c.best(share * horizon) for c in curves), default=math.inf)
        above = min([_start(race), *levels])
        below = level > target if to_target and target is not None else True
        if level < above and below and _steps_to(curves, level) >= LEAST_STEPS:
            levels.append(level)
    if to_target and target is not None:
        levels.append(target)
    seconds = tuple(_seconds_to(curves, level) for level in levels)
    found = [
        _passage(lane, curve.steps_to(level), number, seconds[number])
        for lane, curve in zip(race.lanes, curves, strict=True)
        for number, level in enumerate(levels)
    ]
    return Passages(
        levels=tuple(sign * level for level in levels),
        seconds=seconds,
        to_target=to_target,
        passages=tuple(found),
        diverged=tuple((x.batch_size, x.lr) for x in race.lanes if x.end == "diverged"),
    )


def _start(race: Race) -> float:
    """The metric at the start, less being better; infinite where it is no number."""
    start = race.start if race.goal == "min" else -race.start
    return math.inf if math.isnan(start) else start


def _seconds_to(curves: Sequence[Curve], level: float) -> float:
    return min((c.steps_to(level) * c.step_s for c in curves), default=math.inf)


def _steps_to(curves: Sequence[Curve], level: float) -> float:
    """Updates of whoever reached a level first."""
    return min(curves, key=lambda c: c.steps_to(level) * c.step_s).steps_to(level)


def _passage(lane: Lane, steps: float, level: int, leader_s: float) -> Passage:
    reached = math.isfinite(steps)
    if not reached:
        steps = float(lane.steps[-1] if lane.steps else 1)
        if lane.end == "diverged":
            steps = max(steps, DIVERGED * leader_s / lane.step_s)
    return Passage(
        batch_size=lane.batch_size,
        lr=lane.lr,
        seed=lane.seed,
        level=level,
        steps=max(steps, 1e-3),
        reached=reached,
    )
