"""What would change the answer: the choice again with one thing otherwise."""

from __future__ import annotations

import dataclasses
import math

from rightbatch.core.units import show_number
from rightbatch.fit.critical_batch import critical_from_noise, relative_steps
from rightbatch.measure.run_progress import points_of_progress
from rightbatch.plan.choice import Choice
from rightbatch.plan.laws import Laws
from rightbatch.plan.objectives import Energy, Examples, Time
from rightbatch.plan.options import Option, best_option, cost
from rightbatch.training.plan import Alternative

NOTICED = 0.005  # a smaller penalty is not worth saying [assumed]


def alternatives(choice: Choice) -> tuple[Alternative, ...]:
    """What would be chosen by other laws, or for another objective."""
    if not choice.laws.measured:
        return ()
    by_energy = isinstance(choice.objective, Energy) and choice.laws.energy is not None
    if isinstance(choice.objective, Examples) or by_energy:
        unit = "energy" if by_energy else "examples"
        least = "least energy" if by_energy else "fewest examples"
        other = best_option(choice.options, Time())
        condition = f"least time instead of {least}"
        return (_for_other_objective(choice, condition, other, unit),)
    fewest = best_option(choice.options, Examples())
    condition = "fewest examples instead of least time"
    return (
        *(_by_other_laws(choice, *case) for case in _cases(choice)),
        _for_other_objective(choice, condition, fewest, "time"),
    )


def _cases(choice: Choice) -> list[tuple[str, float, Laws]]:
    """Conditions, each with the critical batch and the laws that hold under it."""
    laws, critical = choice.laws, choice.laws.rate.critical_batch.value
    half = laws.time.parameters.copy()
    half[0] /= 2
    faster = dataclasses.replace(laws.time, parameters=half)
    cases = [
        ("critical batch 3 x smaller", critical / 3, laws),
        ("critical batch 3 x larger", critical * 3, laws),
        (
            "fixed cost of a step halved",
            critical,
            dataclasses.replace(laws, time=faster),
        ),
    ]
    points = points_of_progress(choice.measurements)
    late = points[len(points) // 2 :]
    if len(late) >= 2 and math.isfinite(critical):
        later = critical_from_noise(late, laws.baseline).critical_batch.value
        cases.append((f"noise as late in the run ({show_number(later)})", later, laws))
    return cases


def _by_other_laws(
    choice: Choice, condition: str, critical: float, laws: Laws
) -> Alternative:
    def time(option: Option) -> float:
        step_s = laws.time.step_seconds(option.micro_batch, option.accumulation)
        return relative_steps(critical, option.batch_size, laws.baseline) * step_s

    best = min(choice.options, key=time)
    kept, penalty = choice.chosen.batch_size, time(choice.chosen) / time(best) - 1
    consequence = f"B = {best.batch_size}"
    if best.batch_size == kept:
        consequence = "the same B"
    elif penalty > NOTICED:
        consequence += f"; B = {kept} would cost {penalty:.0%} more time"
    return Alternative(
        condition=condition,
        batch_size=best.batch_size,
        penalty=penalty,
        consequence=consequence,
    )


def _for_other_objective(
    choice: Choice, condition: str, other: Option, unit: str
) -> Alternative:
    """What the best batch of another objective costs under this one."""
    objective = choice.objective
    penalty = cost(other, objective) / cost(choice.by_laws, objective) - 1
    consequence = f"B = {other.batch_size}, taking {penalty:.0%} more {unit}"
    if other.batch_size == choice.chosen.batch_size:
        consequence = "the same B"
    return Alternative(
        condition=condition,
        batch_size=other.batch_size,
        penalty=penalty,
        consequence=consequence,
    )
