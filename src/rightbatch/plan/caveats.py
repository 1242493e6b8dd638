"""What was not checked, so that nobody takes more from a plan than it holds."""

from __future__ import annotations

import math
import statistics

from rightbatch.core.units import show_number, show_seconds
from rightbatch.fit.stairs import stair
from rightbatch.measure.run_progress import has_stalled, points_of_progress
from rightbatch.plan.choice import Choice
from rightbatch.plan.evidence import LONGEST_EVALUATION
from rightbatch.plan.objectives import Energy, Examples, Money

STAIR = 1.05  # a step this much longer just past a power of two is told [assumed]
SLOW_FETCH = 0.1  # of a step [assumed]


def caveats(choice: Choice) -> tuple[str, ...]:
    """One sentence for everything that was not checked, or is uncertain."""
    sentences = (
        _length_of_run(choice),
        _noise(choice),
        _contention(choice),
        _largest(choice),
        _stairs(choice),
        _fetching(choice),
        *_objective(choice),
    )
    return tuple(sentence for sentence in sentences if sentence)


def _length_of_run(choice: Choice) -> str:
    evidence, race = choice.evidence, choice.measurements.race
    if race is None:
        return "No race was run: the comparison rests on the laws alone."
    if choice.raced is None or evidence.share >= 1.0:
        if race.target is None or choice.measurements.job.target is not None:
            return ""
        further = " The planned run goes on to the end of its schedule."
        return (
            f"The target raced to, {show_number(race.target)}, is what today's run "
            "came to at its end." + (further if choice.measurements.job.rate else "")
        )
    length = show_seconds(evidence.run_s)
    taken = f"a run taken as {length}" if not evidence.known else f"a run of {length}"
    why = "the job has no target"
    if choice.measurements.job.target is not None:
        why = f"it was raced by {race.metric}, not to the target"
        if choice.measurements.evaluate_s is not None:
            asks = _budget_for_evaluate(choice.measurements.evaluate_s)
            why += f", as one call of evaluate takes {asks}"
    if race.target is not None:
        best = max if race.goal == "max" else min
        metrics = [m for lane in race.lanes for m in lane.metrics]
        seen = best(m for m in metrics if math.isfinite(m))
        why = (
            f"the target {show_number(race.target)} was not reached, best "
            f"{show_number(seen)}"
        )
    raced = show_seconds(evidence.share * evidence.run_s)
    return (
        f"The leaders were raced for {raced} of {taken} ({why}). Early, high rates "
        "look better than they are."
    )


def _budget_for_evaluate(evaluate_s: float) -> str:
    budget_s = evaluate_s / LONGEST_EVALUATION
    return f"{show_seconds(evaluate_s)}: --budget {show_seconds(budget_s)} races by it"


def _noise(choice: Choice) -> str:
    measurements, noise = choice.measurements, choice.laws.noise
    if noise is None and measurements.diverged:
        return "Gradient noise was not measured: today's setting diverged."
    if noise is None:
        seen = "seen at one moment alone" if measurements.noise else "not measured"
        return f"Gradient noise was {seen}: too few steps fitted the budget."
    law, prior = choice.laws.rate, noise.critical_batch
    found = law.critical_batch
    if law.runs and prior.bounded and not found.low <= prior.value <= found.high:
        return (
            f"Gradient noise alone would put the critical batch at {prior}; the runs "
            f"say {found}, and they decide."
        )
    if law.runs:
        return ""
    points = points_of_progress(measurements)
    if has_stalled(measurements.metrics, measurements.metric_goal):
        return (
            f"The {measurements.metric} got worse in the end; noise until then counts."
        )
    seen = points[-1].examples
    passes = show_number(seen / measurements.job.examples)
    return (
        f"Noise was followed for {seen:,} examples, {passes} passes over the data; it "
        "usually grows later, which favours larger batches."
    )


def _contention(choice: Choice) -> str:
    contention = choice.measurements.contention
    if contention is None or not contention.busy:
        return ""
    return (
        f"Times are uncertain ({contention.reason}): the law is fitted to CPU time "
        "instead."
    )


def _largest(choice: Choice) -> str:
    timed, examples = choice.laws.time.largest, choice.measurements.job.examples
    last, by_laws = choice.options[-1].batch_size, choice.by_laws
    if by_laws.batch_size == last and 2 * last > examples:
        return f"No larger batch was considered: the data are {examples:,} examples."
    if choice.chosen.batch_size > timed or by_laws.micro_batch == timed:
        return (
            f"Steps of more than {timed} examples at once were not timed; larger "
            "batches are predicted as accumulated."
        )
    return ""


def _stairs(choice: Choice) -> str:
    step = stair(choice.measurements.times)
    if step is None or step[1].low <= STAIR:
        return ""
    edge, ratio = step
    return (
        f"Step time climbs in stairs: {edge + 1} examples take {ratio.value:.2f} x the "
        f"time of {edge}; keep to multiples of {edge}."
    )


def _fetching(choice: Choice) -> str:
    times = choice.measurements.times
    share = statistics.median(p.fetch_time_s / p.step_time_s.value for p in times)
    if share <= SLOW_FETCH:
        return ""
    part = "Most" if share > 0.5 else f"About {share:.0%}"
    return (
        f"{part} of a step is fetching its examples in the training process; with "
        "loader workers another batch may be best."
    )


def _objective(choice: Choice) -> list[str]:
    objective, sentences = choice.objective, []
    metered = isinstance(objective, Energy) and choice.laws.energy is not None
    if isinstance(objective, Energy | Money) and not metered:
        name = objective.name.capitalize()
        sentences.append(f"{name} is modelled as proportional to time.")
    if not isinstance(objective, Examples) and choice.laws.memory is None:
        sentences.append(
            "Memory was not measured; the split assumes that everything timed fits."
        )
    return sentences
