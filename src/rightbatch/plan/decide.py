"""The decision: a choice and the plan that explains it."""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch.measure.record import Measurements
from rightbatch.plan.choice import Choice, choose
from rightbatch.plan.explain import make_plan
from rightbatch.plan.objectives import Objective
from rightbatch.training.plan import Plan


@dataclass(frozen=True)
class Decision:
    """What to do (``plan``) and everything it was chosen from (``choice``)."""

    plan: Plan
    choice: Choice


def decide(
    found: Measurements,
    objective: Objective | None = None,
    *,
    deadline_s: float | None = None,
    memory_bytes: float | None = None,
    rule: str = "auto",
) -> Decision:
    """Decide from measurements alone; see `plan.choice.choose` for the arguments.

    Raises:
        SettingError: See `choose`.
        UnidentifiedError: See `choose`.
    """
    choice = choose(
        found,
        objective,
        deadline_s=deadline_s,
        memory_bytes=memory_bytes,
        rule=rule,
    )
    return Decision(plan=make_plan(choice), choice=choice)
