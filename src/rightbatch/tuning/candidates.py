"""Who races: the plan, today's batch, and a neighbour."""

from __future__ import annotations

from rightbatch.plan.choice import Choice, scaling_of
from rightbatch.plan.options import Option
from rightbatch.tuning.race import Entry


def race_entries(choice: Choice) -> tuple[Entry, ...]:
    """The plan, today's batch, and the neighbour on the less certain side.

    Where the plan is today's batch, both its neighbours run against it.
    """
    sizes = [o.batch_size for o in choice.options]
    place = sizes.index(choice.chosen.batch_size)
    below = choice.options[place - 1] if place > 0 else None
    above = choice.options[place + 1] if place + 1 < len(sizes) else None
    picked = [("today", choice.baseline)]
    if choice.chosen.batch_size != choice.baseline.batch_size:
        picked.insert(0, ("plan", choice.chosen))
        neighbour = _less_certain(choice, below, above)
        if neighbour is not None:
            picked.append(("neighbour", neighbour))
    else:
        pairs = (("smaller", below), ("larger", above))
        picked += [(role, o) for role, o in pairs if o is not None]
    return tuple(_entry(choice, role, option) for role, option in picked)


def _less_certain(
    choice: Choice, below: Option | None, above: Option | None
) -> Option | None:
    """The neighbour whose predicted interval reaches lower; never today's batch."""
    today = choice.baseline.batch_size
    sides = [o for o in (below, above) if o is not None and o.batch_size != today]
    return min(sides, key=lambda o: o.time.low, default=None)


def _entry(choice: Choice, role: str, option: Option) -> Entry:
    job = choice.measurements.job
    rule = choice.scaling.rule
    scaling = scaling_of(choice.measurements, choice.laws, option.batch_size, rule)
    return Entry(
        role=role,
        batch_size=option.batch_size,
        micro_batch=option.micro_batch,
        lr=job.lr * scaling.lr,
        scaling=scaling,
        step_s=option.step_time_s.value,
    )
