"""The verdict: what to do, in two or three sentences."""

from __future__ import annotations

import math

from rightbatch.core.estimate import Estimate
from rightbatch.core.units import show_number
from rightbatch.measure.measurements import THIS_RUN
from rightbatch.plan.choice import TOLERATED, Choice
from rightbatch.plan.evidence import LEAST_ADVICE, LEAST_SHARE, LONGEST_EVALUATION
from rightbatch.plan.objectives import Energy, Examples

# A race takes about so many times what its leader trains: a field that shrinks while
# its length doubles, and repeats. [measured: docs/benchmarks.md]
RACE_COST = 12.0
# Where today's setting never got as far, less of its time than this is not claimed: how
# slow it is beyond what was raced only the law says. [assumed]
LEAST_TOLD = 0.01


# Noise seen for a smaller part of a pass over the data is no ground for advice.
LEAST_PASSES = 0.1  # [assumed]
LEAST_LUCK = 4  # runs, of which if fewer than half get there it is luck [assumed]
SOON_S = 600.0  # a budget that anybody has [assumed]


def verdict(choice: Choice) -> str:
    """The decision against today's setting; undecided, what would settle it."""
    job, chosen, grade = choice.measurements.job, choice.chosen, choice.evidence.grade
    if choice.raced is None:
        return f"{_by_laws(choice)} {settle(choice)}"
    here = f"B = {chosen.batch_size} and lr {chosen.lr:.3g}"
    today = f"B = {job.batch_size} and lr {job.lr:.3g}"
    if choice.contradiction:
        return (
            f"Undecided, since race and laws contradict each other: "
            f"{choice.contradiction}. {here} is the best guess. {settle(choice)}"
        )
    if choice.decided and choice.stays:
        return f"Stay at {today} ({grade}): {_rival(choice)} {_flat(choice)}".strip()
    if choice.raced.standings[0].diverged and not choice.raced.standings[0].runs:
        today += ", which diverged"
        if choice.decided:
            change = f"Train with {here} instead of {today} ({grade})."
            return f"{change} {_flat(choice)}".strip()
        return f"Worth trying ({grade}): {here} instead of {today}. {settle(choice)}"
    if choice.decided:
        gain = f"{grade}, the same result should take {_gain(choice)}"
        return f"Train with {here} instead of {today}: {gain}. {_flat(choice)}".strip()
    if choice.evidence.share < LEAST_ADVICE:
        return (
            f"Undecided ({grade}): that is too little of it to go by, so the plan "
            f"stays at {today}. {settle(choice)}"
        )
    if choice.stays:
        return f"Undecided ({grade}): {today} may be as good as any. {settle(choice)}"
    return (
        f"Worth trying ({grade}): {here} instead of {today}; the same result may take "
        f"{_gain(choice)}. {settle(choice)}"
    )


def _by_laws(choice: Choice) -> str:
    job, by_laws = choice.measurements.job, choice.by_laws
    race = choice.measurements.race
    if race is not None:
        rates = sorted(lane.lr for lane in race.lanes)
        if all(lane.end == "diverged" for lane in race.lanes):
            return (
                f"Undecided: all {len(rates)} runs of the race diverged, at learning "
                f"rates from {rates[0]:.3g} to {rates[-1]:.3g}."
            )
        return (
            "Undecided: nothing that was raced got better than the start "
            f"({show_number(race.start)})."
        )
    if not choice.laws.measured:
        return (
            "Undecided: neither a race nor the gradient's noise fitted the budget, so "
            "nothing is known of other batches."
        )
    seen = choice.measurements.noise[-1].examples if choice.laws.noise else 0
    passes = seen / job.examples
    if passes < LEAST_PASSES and choice.measurements.noise_source == THIS_RUN:
        return (
            "Undecided (laws only): the gradient's noise was seen over "
            f"{show_number(passes)} of a pass over the data, which tells nothing of a "
            "run."
        )
    if choice.stays:
        return (
            f"Undecided (laws only): they find nothing better than today's B = "
            f"{job.batch_size}, and say nothing of its learning rate."
        )
    return (
        f"Worth trying (laws only): B = {by_laws.batch_size} and lr {by_laws.lr:.3g} "
        f"instead of B = {job.batch_size}; if today's rate is right, the same result "
        f"takes {_gain(choice)}."
    )


def _flat(choice: Choice) -> str:
    low, high = choice.flat
    if low == high:
        return ""
    return f"Any B from {low} to {high}, each at its best rate, is within 10 %."


def _rival(choice: Choice) -> str:
    """The best of what was raced beside today's setting."""
    assert choice.raced is not None
    others = [s for s in choice.raced.standings[1:] if s.runs]
    if not others:
        return "nothing else that was raced got as far."
    best = min(others, key=lambda s: s.cost.value)
    return (
        f"the best else, B = {best.batch_size} with lr {best.lr:.3g}, took "
        f"{span(best.cost)} of its {cost_unit(choice)}."
    )


def cost_unit(choice: Choice) -> str:
    """What is to be least, in a word."""
    if isinstance(choice.objective, Examples):
        return "examples"
    energy = isinstance(choice.objective, Energy) and choice.laws.energy is not None
    return "energy" if energy else "time"


def _gain(choice: Choice) -> str:
    """What the objective counts over today's."""
    raced, gain = choice.raced, choice.gain
    if raced is not None and not raced.standings[0].runs:
        most = max(gain.high, LEAST_TOLD)
        return f"at most {most:.2g} of today's {cost_unit(choice)}"
    return f"{span(gain)} of today's {cost_unit(choice)}"


def span(e: Estimate) -> str:
    """A ratio with its interval, two digits each."""
    high = f"{e.high:.2g}" if math.isfinite(e.high) else "no bound"
    return f"{e.value:.2g} ({e.low:.2g} to {high})"


def settle(choice: Choice) -> str:
    """What an undecided choice lacks, what would settle it, and how long that takes."""
    doubt = choice.doubts[0] if choice.raced and not choice.contradiction else ""
    lacks = f"Not sure: {doubt}. " if doubt else ""
    return f"{lacks}What would settle it: {_more(choice)}."


def _more(choice: Choice) -> str:
    evidence, race = choice.evidence, choice.measurements.race
    to_target = choice.measurements.job.target is not None
    share, aim = LEAST_SHARE, f"over {LEAST_SHARE:.0%} of a run"
    if to_target:
        share, aim = 1.0, "to the target"
    needed = max(RACE_COST * share * evidence.run_s, 2 * _spent(choice))
    by_evaluate_s = _budget_for_evaluate(choice)
    if by_evaluate_s is not None:  # how long a run is will be known then
        needed = max(by_evaluate_s, 2 * _spent(choice))
        return (
            f"a race by evaluate, towards the target, --budget {_minutes(needed)} or "
            "more; or a faster evaluate"
        )
    longer = f"a race {aim}, --budget {_minutes(needed)}" + (
        "" if evidence.known else " or more"
    )
    enough = evidence.enough and evidence.share >= share
    if choice.unseen and enough:
        return (
            "step times of larger batches, which did not fit the budget: --budget "
            f"{_minutes(3 * _spent(choice))}"
        )
    if race is not None and choice.raced is None:
        lowest = min(lane.lr for lane in race.lanes)
        return (
            f"a learning rate below {lowest:.3g}, or a look at the job: no setting "
            "improved on the start"
        )
    if not to_target and not evidence.known and evidence.share >= LEAST_SHARE:
        return "how long a run is: target= with evaluate=, or epochs= in the Job"
    own = choice.standing
    tries = own.runs + own.failed if own else 0
    if enough and own and tries >= LEAST_LUCK and own.runs < tries / 2:
        return (
            f"a target that more runs reach ({own.runs} of {tries} got to this "
            "one), or a schedule that lowers the learning rate towards the end"
        )
    if choice.contradiction or enough:
        longer = f"a longer race, --budget {_minutes(2 * _spent(choice))}"
        if choice.regret <= TOLERATED and not choice.contradiction:
            longer += "; the two may also be equally good"
        return longer
    soon = max(SOON_S, 2 * _spent(choice))
    if needed > 2 * soon and evidence.run_s > 0:
        part = show_number(100 * soon / RACE_COST / evidence.run_s)
        longer += f" (--budget {_minutes(soon)} races over about {part} %)"
    return (
        f"{longer}; or, of a real run, its checkpoint (--from FILE) or its noise "
        "(--noise FILE)"
    )


def _budget_for_evaluate(choice: Choice) -> float | None:
    """From which on a race goes by ``evaluate``; None where this one did."""
    race, evaluate_s = choice.measurements.race, choice.measurements.evaluate_s
    if race is None or race.target is not None or evaluate_s is None:
        return None
    if choice.measurements.job.target is None:
        return None
    return evaluate_s / LONGEST_EVALUATION


def _spent(choice: Choice) -> float:
    return sum((choice.measurements.seconds or {}).values())


def _minutes(seconds: float) -> str:
    """As the option takes it: whole seconds, minutes or hours."""
    if seconds < 90:
        return f"{max(math.ceil(seconds), 1)}s"
    if seconds < 90 * 60:
        return f"{math.ceil(seconds / 60)}m"
    return f"{math.ceil(seconds / 3600)}h"
