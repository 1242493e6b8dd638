"""The decision: a choice, and the plan that explains it."""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch.core.estimate import Estimate
from rightbatch.measure.measurements import Measurements
from rightbatch.plan.alternatives import alternatives
from rightbatch.plan.caveats import caveats
from rightbatch.plan.choice import Choice, choose
from rightbatch.plan.length import planned_examples
from rightbatch.plan.objectives import Money, Objective, Time
from rightbatch.plan.reasons import reasons
from rightbatch.plan.verdict import verdict
from rightbatch.training.plan import Plan


@dataclass(frozen=True)
class Decision:
    """What to do (``plan``) and everything it was chosen from (``choice``)."""

    plan: Plan
    choice: Choice


def decide(
    measurements: Measurements,
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
        measurements,
        objective,
        deadline_s=deadline_s,
        memory_bytes=memory_bytes,
        rule=rule,
    )
    return Decision(plan=make_plan(choice), choice=choice)


def make_plan(choice: Choice) -> Plan:
    """The plan that says what was chosen, and why."""
    measurements, chosen = choice.measurements, choice.chosen
    job, machine = measurements.job, measurements.machine
    predicted = {
        "step_time_s": chosen.step_time_s,
        "steps_vs_today": chosen.steps,
        "examples_vs_today": chosen.examples,
        "time_vs_today": _time_vs_today(choice),
        "critical_batch": choice.laws.critical.critical_batch,
    }
    if chosen.seconds is not None:
        predicted["seconds_to_target"] = chosen.seconds
    if chosen.energy is not None:
        predicted["energy_vs_today"] = chosen.energy
    return Plan(
        job=job.name,
        spec=job.spec,
        decided=choice.decided,
        grade=choice.evidence.grade,
        objective=choice.objective.name,
        batch_size=chosen.batch_size,
        micro_batch=-(-chosen.micro_batch // choice.laws.world_size),
        world_size=choice.laws.world_size,
        accumulation=chosen.accumulation,
        optimizer=job.optimizer,
        lr=chosen.lr,
        lr_factor=chosen.lr / (job.lr * choice.scaling.lr),
        examples=planned_examples(choice),
        scaling=choice.scaling,
        schedule="constant",
        today=job.batch_size,
        flat_low=choice.flat[0],
        flat_high=choice.flat[1],
        predicted=predicted,
        why=reasons(choice),
        alternatives=alternatives(choice),
        limits=caveats(choice),
        verdict=verdict(choice),
        memory_limit_bytes=choice.limit_bytes,
        deadline_s=choice.deadline_s,
        threads=machine.threads if machine.device == "cpu" else None,
        half_batch=choice.laws.time.half_batch.value,
        coupled_batch=_coupled_batch(choice),
    )


def _time_vs_today(choice: Choice) -> Estimate:
    """Of whatever is to be least, the time: by the race where there was one."""
    by_time = isinstance(choice.objective, Time | Money)
    return choice.gain if choice.raced is not None and by_time else choice.chosen.time


def _coupled_batch(choice: Choice) -> int | None:
    """Examples that see each other under the plan, where any do."""
    job, laws = choice.measurements.job, choice.laws
    if job.coupled == "loss":
        return -(-choice.chosen.micro_batch // laws.world_size)
    return job.coupled_batch
