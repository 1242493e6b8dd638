"""What a race proves of a choice: laws alone are worth trying, never a verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rightbatch.measure.record import Candidate, Measurements, Race
from rightbatch.measure.standstill import best_step, has_stalled
from rightbatch.plan.options import Option

# A race must have trained today's setting for at least this share of a run to prove
# anything about a whole one. [assumed]
LEAST_SHARE = 0.01
# Passes over the data that a run takes where no target was reached. Long, so that a
# race has to be long: the doubt is on the side of "worth trying". [assumed]
PASSES = 10
NEAR = 1.10  # a candidate within 10 % of another counts as equally fast [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """How far a race compared a choice with today's setting, and what it found.

    Attributes:
        run_examples: Examples of a whole run with today's setting.
        run_known: Whether a run reached its target; else ``PASSES`` over the data.
        raced_examples: Examples that today's candidate trained on in a round; 0 without one.
        contradiction: Where race and laws exclude each other, in words; else empty.
    """

    run_examples: float
    run_known: bool
    raced_examples: float
    contradiction: str

    @property
    def share(self) -> float:
        """Of a run, how much the race trained today's setting for."""
        return self.raced_examples / self.run_examples

    @property
    def proves(self) -> bool:
        """Whether the race was long enough and agrees with the laws."""
        return self.share >= LEAST_SHARE and not self.contradiction


def evidence_for(
    found: Measurements, options: Sequence[Option], chosen: Option, by_model: Option
) -> Evidence:
    """What the race, if there was one, says of a choice against today's setting.

    Held against the laws are the chosen batch and the laws' own; all, where today's
    is chosen. What happens at a neighbour of theirs decides nothing.
    """
    job = found.job
    steps = steps_to_target(found)
    run = PASSES * job.examples if steps is None else steps * job.batch_size
    raced, contradiction = 0.0, ""
    if found.race is not None and candidate_of(found, chosen) is not None:
        rivals = [x for x in found.race.candidates if x.role != "today"]
        today = next(x for x in found.race.candidates if x.role == "today")
        if rivals:
            raced = today.steps * today.batch_size
        sizes = {chosen.batch_size, by_model.batch_size}
        if today.batch_size not in sizes:
            rivals = [x for x in rivals if x.batch_size in sizes]
        contradiction = _contradiction(options, rivals)
    return Evidence(
        run_examples=run,
        run_known=steps is not None,
        raced_examples=raced,
        contradiction=contradiction,
    )


def _contradiction(options: Sequence[Option], candidates: Sequence[Candidate]) -> str:
    """The first candidate whose speed in the race the laws exclude, and the other way."""
    for candidate in candidates:
        key = (candidate.batch_size, candidate.micro_batch)
        option = next(
            (o for o in options if (o.batch_size, o.micro_batch) == key), None
        )
        if option is None or math.isnan(candidate.speedup.value):
            continue
        low, high = 1 / option.time.high, 1 / option.time.low
        if candidate.speedup.high < low or candidate.speedup.low > high:
            return (
                f"at B = {candidate.batch_size} the laws predict {low:.2g} to {high:.2g} x "
                f"today's speed, the race measured {candidate.speedup.low:.2g} to "
                f"{candidate.speedup.high:.2g} x"
            )
    return ""


def candidate_of(found: Measurements, option: Option) -> Candidate | None:
    """The candidate of a batch in a race that tells something; split the same way."""
    if found.race is None or not race_tells(found.race):
        return None
    key = (option.batch_size, option.micro_batch)
    candidates = found.race.candidates
    return next((x for x in candidates if (x.batch_size, x.micro_batch) == key), None)


def race_tells(race: Race) -> bool:
    """Whether any candidate ended, in the median of its rounds, better than the start."""
    sign = 1 if race.goal == "min" else -1
    ends = [
        statistics.median(sign * m for m in candidate.metrics)
        for candidate in race.candidates
    ]
    return min(ends) < sign * race.start


def race_settles(found: Measurements, candidate: Candidate | None) -> bool:
    """Whether the race says that a candidate is, within 10 %, as fast as any other in it.

    A race without progress, or without scatter to judge it by, says nothing.
    """
    if found.race is None or candidate is None:
        return False
    race = found.race
    judged = [x.speedup for x in race.candidates if x.role != "today"]  # whose own is 1
    if any(s.low == s.high for s in judged):
        return False
    others = [x.speedup for x in race.candidates if x is not candidate]
    return all(s.high / NEAR <= candidate.speedup.low for s in others)


def steps_to_target(found: Measurements) -> int | None:
    """Steps after which the measuring run met the target, if it did."""
    target, lower = found.job.target, found.job.goal == "min"
    if target is None or found.metric != "evaluate":
        return None
    for point in found.metrics:
        if point.metric <= target if lower else point.metric >= target:
            return point.step
    return None


def steps_of_progress(found: Measurements) -> int | None:
    """Steps to the target, or to the best value of a run that stood still, or None."""
    reached = steps_to_target(found)
    if reached is None and has_stalled(found.metrics, found.metric_goal):
        return best_step(found.metrics, found.metric_goal)
    return reached
