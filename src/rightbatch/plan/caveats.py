"""What was not checked, so that nobody takes more from a plan than it holds."""

from __future__ import annotations

import statistics

from rightbatch.core.units import show_number, show_seconds
from rightbatch.fit.stairs import stair
from rightbatch.measure.run_progress import has_stalled, points_of_progress
from rightbatch.plan.choice import Choice
from rightbatch.plan.evidence import race_tells
from rightbatch.plan.objectives import Energy, Examples, Money

STAIR = 1.05  # a step this much longer just past a power of two is told [assumed]
SLOW_FETCH = 0.1  # of a step [assumed]


def caveats(choice: Choice) -> tuple[str, ...]:
    """One sentence for everything that was not checked, or is uncertain."""
    rate = "The learning rate follows from today's by a rule: it is as good as today's."
    sentences = (
        _length_of_run(choice),
        _race(choice),
        rate,
        _contention(choice),
        _largest(choice),
        _stairs(choice),
        _fetching(choice),
        *_objective(choice),
    )
    return tuple(sentence for sentence in sentences if sentence)


def _length_of_run(choice: Choice) -> str:
    measurements = choice.measurements
    job = measurements.job
    if choice.laws.steps_to_target is not None:
        return ""
    why = "the job has no target"
    if has_stalled(measurements.metrics, measurements.metric_goal):
        why = f"the {measurements.metric} got worse after that"
    elif job.has_evaluate and measurements.metric != "evaluate":
        why = "its evaluation is too slow to be called along the run"
    elif job.target is not None:
        why = "the target was not reached within the budget"
    seen = points_of_progress(measurements)[-1].examples
    return (
        f"Noise was followed for {seen:,} examples, {show_number(seen / job.examples)} "
        f"passes over the data ({why}); it usually grows later, which favours larger "
        "batches."
    )


def _race(choice: Choice) -> str:
    race = choice.measurements.race
    if race is None:
        return "No race was run: the comparison rests on the laws alone."
    if not race_tells(race):
        return (
            "The race shows nothing: no candidate got better than the start "
            f"({show_number(race.start)})."
        )
    return (
        f"The race lasted {show_seconds(race.seconds)} a candidate; no run was made to "
        "the end at the chosen batch."
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
    return (
        f"About {min(share, 1):.0%} of a step is fetching its examples in the training "
        "process; with loader workers another batch may be best."
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
