"""How long the planned run is, where today's has a length."""

from __future__ import annotations

from rightbatch.plan.choice import Choice
from rightbatch.training.plan import Reason

# Of today's run the planned one is so long at the least, whatever a law says. [assumed]
LEAST_LENGTH = 0.02
SAME = 0.01  # a difference that is not told [assumed]


def planned_examples(choice: Choice) -> float | None:
    """Examples that the planned run sees; None where today's has no length."""
    today = choice.measurements.job.run_examples
    if today is None:
        return None
    if choice.measurements.job.rate:  # as its schedule was stretched in the race
        return today * choice.laws.rate.prior.stretch(choice.chosen.batch_size)
    return today * max(choice.chosen.examples.value, LEAST_LENGTH)


def length_reason(choice: Choice) -> Reason | None:
    """That the planned run sees more or fewer examples than today's, where it does."""
    planned, today = planned_examples(choice), choice.measurements.job.run_examples
    if planned is None or not today or abs(planned / today - 1) < SAME:
        return None
    text = f"The planned run sees {planned:,.0f} examples, today's {today:,.0f}"
    if choice.measurements.job.rate:
        text += "; its schedule of the learning rate is stretched to them"
    return Reason(
        topic="length", text=f"{text}.", numbers={"planned": planned, "today": today}
    )
