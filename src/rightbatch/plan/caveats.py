"""What would change the answer, and what was not checked."""

from __future__ import annotations

import dataclasses
import math

from rightbatch.core.units import show_number, show_seconds
from rightbatch.fit.step_time import stair
from rightbatch.fit.steps import critical_from_noise
from rightbatch.measure.standstill import has_stalled
from rightbatch.plan.choice import (
    Choice,
    best_option,
    cost,
    points_of_progress,
)
from rightbatch.plan.evidence import race_tells
from rightbatch.plan.objectives import Energy, Examples, Money, Time
from rightbatch.plan.options import Laws, Option
from rightbatch.training.plan import Alternative

STAIR = 1.05  # a step this much longer just past a power of two is told [assumed]


def alternatives(choice: Choice) -> tuple[Alternative, ...]:
    """What the laws would choose if something were otherwise."""
    if isinstance(choice.objective, Examples):
        fastest = best_option(choice.options, Time())
        penalty = fastest.examples.value / choice.chosen.examples.value - 1
        condition = "least time instead of fewest examples"
        return (
            Alternative(
                condition=condition, batch_size=fastest.batch_size, penalty=penalty
            ),
        )
    if isinstance(choice.objective, Energy) and choice.laws.energy is not None:
        fastest = best_option(choice.options, Time())
        penalty = cost(fastest, choice.objective) / cost(
            choice.by_model, choice.objective
        )
        return (
            Alternative(
                condition="least time instead of least energy",
                batch_size=fastest.batch_size,
                penalty=penalty - 1,
            ),
        )
    laws, critical = choice.laws, choice.laws.noise.critical_batch.value
    cases = [
        ("critical batch 3 x smaller", critical / 3, laws),
        ("critical batch 3 x larger", critical * 3, laws),
    ]
    half = laws.time.parameters.copy()
    half[0] /= 2
    faster = dataclasses.replace(laws.time, parameters=half)
    cases.append(
        (
            "fixed cost of a step halved",
            critical,
            dataclasses.replace(laws, time=faster),
        )
    )
    points = points_of_progress(choice.found)
    late = points[len(points) // 2 :]
    if len(late) >= 2 and math.isfinite(critical):
        later = critical_from_noise(late, laws.today).critical_batch.value
        cases.append(
            (
                f"noise as late in the run ({show_number(later)})",
                later,
                laws,
            )
        )
    found = [_otherwise(choice, *case) for case in cases]
    fewest = best_option(choice.options, Examples())
    found.append(
        Alternative(
            condition="fewest examples instead of least time",
            batch_size=fewest.batch_size,
            penalty=fewest.time.value / choice.by_model.time.value - 1,
        )
    )
    return tuple(found)


def _otherwise(
    choice: Choice, condition: str, critical: float, laws: Laws
) -> Alternative:
    def time(o: Option) -> float:
        step = laws.time.step_seconds(o.micro_batch, o.accumulation)
        return laws.ratio(critical, o.batch_size) * step

    best = min(choice.options, key=time)
    return Alternative(
        condition=condition,
        batch_size=best.batch_size,
        penalty=time(choice.chosen) / time(best) - 1,
    )


def limits(choice: Choice) -> tuple[str, ...]:
    """What was not checked, so that nobody takes more from it than it holds."""
    found, laws = choice.found, choice.laws
    said = []
    if laws.steps_to_target is None:
        reach = points_of_progress(found)[-1].examples
        why = "the job has no target"
        if has_stalled(found.metrics, found.metric_goal):
            why = f"the {found.metric} got worse after that"
        elif found.job.has_evaluate and found.metric != "evaluate":
            why = "its evaluation is too slow to be called along the run"
        elif found.job.target is not None:
            why = "the target was not reached within the budget"
        said.append(
            f"Noise was followed for {reach:,} examples, "
            f"{show_number(reach / found.job.examples)} passes over the data ({why}); "
            "it usually grows later, which favours larger batches."
        )
    if found.race is None:
        said.append("No race was run: the comparison rests on the two laws alone.")
    elif not race_tells(found.race):
        said.append(
            "The race tells nothing: no candidate got better than the start "
            f"({show_number(found.race.start)})."
        )
    else:
        said.append(
            f"The race lasted {show_seconds(found.race.seconds)} a candidate; no run was "
            "made to the end at the chosen batch."
        )
    said.append(
        "The learning rate follows from today's by a rule: it is as good as today's."
    )
    if found.contention is not None and found.contention.busy:
        said.append(
            f"Times are uncertain: {found.contention.reason}. CPU time was fitted."
        )
    largest = laws.time.largest
    last = choice.options[-1].batch_size
    if choice.by_model.batch_size == last and 2 * last > found.job.examples:
        said.append(
            f"No larger batch was considered: the data are {found.job.examples:,} "
            "examples."
        )
    elif choice.chosen.batch_size > largest or choice.by_model.micro_batch == largest:
        said.append(
            f"Steps of more than {largest} examples at once were not timed; larger "
            "batches are reckoned as accumulated."
        )
    step = stair(found.times)
    if step is not None and step[1].low > STAIR:
        edge, ratio = step
        said.append(
            f"Step time climbs in stairs: {edge + 1} examples take {ratio.value:.2f} x "
            f"the time of {edge}; keep to multiples of {edge}."
        )
    slow = max(p.fetch_time_s / p.step_time_s.value for p in found.times)
    if slow > 0.1:
        said.append(
            f"Up to {slow:.0%} of a step is fetching its examples in the training "
            "process; with loader workers another batch may be best."
        )
    measured = isinstance(choice.objective, Energy) and laws.energy is not None
    if isinstance(choice.objective, Energy | Money) and not measured:
        said.append(
            f"{choice.objective.name.capitalize()} is modelled as proportional to time."
        )
    if isinstance(choice.objective, Time | Energy | Money) and laws.memory is None:
        said.append("Memory was not measured; the split assumes everything timed fits.")
    return tuple(said)
