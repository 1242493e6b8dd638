"""What a race proves of a choice: laws alone are worth trying, never a verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rightbatch.measure.measurements import Candidate, Measurements, Race
from rightbatch.measure.run_progress import steps_to_target
from rightbatch.plan.options import Option

# A race must have trained today's setting for at least this share of a run to prove
# anything about a whole one. [assumed]
LEAST_SHARE = 0.01
# Passes over the data that a run takes where no target was reached. Long, so that a
# race has to be long: the doubt is on the side of "worth trying". [assumed]
PASSES = 10
NEAR = 1.10  # a candidate within 10 % of another counts as equally fast [assumed]
VAGUE = 4.0  # high end over low end of an interval that says too little [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """How far a race compared a choice with today's setting, and what it found.

    Attributes:
        run_examples: Examples of a whole run with today's setting.
        run_known: Whether a run reached its target; else ``PASSES`` over the data, or
            what was trained without reaching it, if that is more.
        raced_examples: Examples that today's setting trained on in a round of the race
            against this choice; 0 where there was none.
        clear: Whether the race shows that the choice is, within 10 %, no slower than
            today's setting, or today's no slower than its rivals.
        contradiction: Where race and laws exclude each other, in words; else empty.
    """

    run_examples: float
    run_known: bool
    raced_examples: float
    clear: bool
    contradiction: str

    @property
    def share(self) -> float:
        """The share of a run for which the race trained today's setting."""
        return self.raced_examples / self.run_examples

    @property
    def proves(self) -> bool:
        """Whether the race was long enough, clear, and agrees with the laws."""
        long_enough = self.share >= LEAST_SHARE
        return long_enough and self.clear and not self.contradiction


def evidence_for(
    measurements: Measurements,
    options: Sequence[Option],
    chosen: Option,
    by_laws: Option,
) -> Evidence:
    """What the race, if there was one, says of a choice against today's setting.

    Held against the laws are the chosen batch and the laws' own; all, where today's
    is chosen. What happens at a neighbour of theirs decides nothing.
    """
    job, race = measurements.job, measurements.race
    steps = steps_to_target(measurements)
    run = float(PASSES * job.examples)
    if measurements.noise:
        run = max(run, measurements.noise[-1].examples)
    if steps is not None:
        run = steps * job.batch_size
    raced, contradiction, clear = 0.0, "", False
    candidate = candidate_of(measurements, chosen)
    if race is not None and candidate is not None:
        rivals = [x for x in race.candidates if x.role != "today"]
        today = next(x for x in race.candidates if x.role == "today")
        if rivals:
            raced = today.steps * today.batch_size
        clear = _clear(candidate, rivals)
        sizes = {chosen.batch_size, by_laws.batch_size}
        if today.batch_size not in sizes:
            rivals = [x for x in rivals if x.batch_size in sizes]
        contradiction = _contradiction(options, rivals)
    return Evidence(
        run_examples=run,
        run_known=steps is not None,
        raced_examples=raced,
        clear=clear,
        contradiction=contradiction,
    )


def _clear(candidate: Candidate, rivals: Sequence[Candidate]) -> bool:
    """Whether the intervals are narrow enough to show that the choice is no worse."""
    if candidate.role == "today":
        return not any(vague(x) or x.speedup.low > NEAR for x in rivals)
    return not vague(candidate) and candidate.speedup.low * NEAR >= 1


def vague(candidate: Candidate) -> bool:
    """Whether an interval is so wide that quoting it would mislead."""
    return candidate.speedup.high > VAGUE * candidate.speedup.low


def _contradiction(options: Sequence[Option], candidates: Sequence[Candidate]) -> str:
    """The first candidate whose speed the laws exclude, in words; empty for none."""
    by_split = {_split(option): option for option in options}
    for candidate in candidates:
        option, raced = by_split.get(_split(candidate)), candidate.speedup
        if option is None or math.isnan(raced.value):
            continue
        low, high = 1 / option.time.high, 1 / option.time.low
        if raced.high < low or raced.low > high:
            return (
                f"at B = {candidate.batch_size} the laws predict {low:.2g} to "
                f"{high:.2g} x today's speed, the race measured {raced.low:.2g} to "
                f"{raced.high:.2g} x"
            )
    return ""


def candidate_of(measurements: Measurements, option: Option) -> Candidate | None:
    """The candidate of a batch in a race that shows something; split the same way."""
    race = measurements.race
    if race is None or not race_tells(race):
        return None
    same = (x for x in race.candidates if _split(x) == _split(option))
    return next(same, None)


def _split(batch: Candidate | Option) -> tuple[int, int]:
    return batch.batch_size, batch.micro_batch


def race_tells(race: Race) -> bool:
    """Whether any candidate ended better than the start, in the median of rounds."""
    sign = 1 if race.goal == "min" else -1
    ends = [
        statistics.median(sign * m for m in candidate.metrics)
        for candidate in race.candidates
    ]
    return min(ends) < sign * race.start


def race_settles(measurements: Measurements, candidate: Candidate | None) -> bool:
    """Whether the race says that a candidate is, within 10 %, as fast as all others.

    A race without progress, or without scatter to judge it by, says nothing.
    """
    race = measurements.race
    if race is None or candidate is None:
        return False
    # The speed of today's candidate is 1 by definition.
    judged = [x.speedup for x in race.candidates if x.role != "today"]
    if any(s.low == s.high for s in judged):
        return False
    others = [x.speedup for x in race.candidates if x is not candidate]
    return all(s.high / NEAR <= candidate.speedup.low for s in others)
