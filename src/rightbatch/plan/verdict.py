"""The verdict: what to do, in two or three sentences."""

from __future__ import annotations

import math

from rightbatch.core.estimate import Estimate
from rightbatch.core.units import show_number, show_seconds
from rightbatch.plan.choice import Choice
from rightbatch.plan.evidence import LEAST_SHARE, PASSES, vague
from rightbatch.plan.objectives import Energy, Examples


def verdict(choice: Choice) -> str:
    """The decision, today's batch as the reference; undecided, what would settle it."""
    job, chosen = choice.measurements.job, choice.chosen
    if choice.evidence.contradiction:
        return (
            f"Undecided, since the race and the laws contradict each other: "
            f"{choice.evidence.contradiction}. B = {chosen.batch_size} is the best "
            f"guess. {_settle(choice)}"
        )
    if not choice.sure:
        return (
            f"Undecided: B = {chosen.batch_size} is the best guess, but with what is "
            f"known it may cost {choice.regret:.1f} x what the best batch does. "
            f"{_settle(choice)}"
        )
    if chosen.batch_size == job.batch_size:
        keep = "Keep" if choice.decided else "Probably right as it is:"
        sentence = f"{keep} B = {job.batch_size} with lr {job.lr:.3g}. {_flat(choice)}"
        return sentence if choice.decided else f"{sentence} {_settle(choice)}"
    change = (
        f"B = {chosen.batch_size} and lr {job.lr * choice.scaling.lr:.3g} instead of "
        f"B = {job.batch_size}"
    )
    if choice.decided:
        gain = f"the same result should take {_gain(choice)}"
        return f"Train with {change}: {gain}. {_flat(choice)}"
    gain = f"By the laws alone the same result takes {_gain(choice)}"
    return f"Worth trying: {change}. {gain}. {_settle(choice)}"


def _flat(choice: Choice) -> str:
    low, high = choice.flat
    if low == high:
        return f"No other power of two is within 10 % of B = {low}."
    return f"Any B from {low} to {high} is within 10 % of the best."


def _gain(choice: Choice) -> str:
    """What the objective counts over today's, and time where that is another."""
    chosen, candidate = choice.chosen, choice.candidate
    in_time = f"{span(chosen.time)} of"
    if isinstance(choice.objective, Examples):
        return f"{span(chosen.examples)} of today's examples and {in_time} its time"
    if isinstance(choice.objective, Energy) and chosen.energy is not None:
        return f"{span(chosen.energy)} of today's energy and {in_time} its time"
    text = f"{in_time} today's time"
    if candidate is not None and not vague(candidate):
        text += f"; in the race it took {span(candidate.speedup.map(lambda x: 1 / x))}"
    return text


def span(e: Estimate) -> str:
    """A ratio with its interval, two digits each."""
    high = f"{e.high:.2g}" if math.isfinite(e.high) else "no bound"
    return f"{e.value:.2g} ({e.low:.2g} to {high})"


def _settle(choice: Choice) -> str:
    """What would settle an undecided choice: more of what is least known."""
    laws = choice.laws
    critical = laws.noise.critical_batch
    if choice.evidence.contradiction:
        more = (
            "a longer race (raise --budget), or whole runs at both settings: one of "
            "the two is wrong about this job"
        )
    elif choice.sure and choice.evidence.share >= LEAST_SHARE:
        more = (
            "a longer race (raise --budget): as far as it shows, today's setting may "
            "be as good or better"
        )
    elif choice.sure:
        more = _longer_race(choice)
    elif laws.time.half_batch.relative > critical.relative:
        more = "a quieter machine, or a larger --budget: step times are least known"
    elif choice.measurements.race is None and not isinstance(
        choice.objective, Examples
    ):
        more = "a race (leave out --no-race, or raise --budget)"
    else:
        more = f"a larger --budget: the critical batch, {critical}, is least known"
    return f"What would settle it: {more}."


def _longer_race(choice: Choice) -> str:
    """The race that would prove a choice of which the laws are sure."""
    evidence, baseline = choice.evidence, choice.baseline
    needed = LEAST_SHARE * evidence.run_examples
    run = "the way to the target"
    if not evidence.run_known:
        run = f"a run (taken as {PASSES} passes over the data: no target was reached)"
    seconds = needed / baseline.batch_size * baseline.step_time_s.value
    done = "none was run"
    if evidence.raced_examples:
        done = f"it trained on {show_number(evidence.raced_examples)}"
    elif choice.measurements.race is not None:
        done = "this batch was not in it, or no candidate got better than the start"
    return (
        f"a race against today's setting over a hundredth of {run}, "
        f"{show_number(needed)} examples or {show_seconds(seconds)} a candidate and "
        f"round; {done}. Raise --budget, or train both"
    )
