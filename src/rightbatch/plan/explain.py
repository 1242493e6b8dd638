"""Why: a choice in plain words, with the numbers beside every word."""

from __future__ import annotations

import dataclasses
import math

from rightbatch.estimate import Estimate
from rightbatch.fit.progress import critical_from_noise
from rightbatch.measure.trajectory import has_stalled
from rightbatch.plan.choice import Choice, best_option, points_of_progress
from rightbatch.plan.objective import Energy, Examples, Money, Time
from rightbatch.plan.options import Laws, Option
from rightbatch.plan.plan import Alternative, Plan, Reason
from rightbatch.units import show_number, show_seconds


def make_plan(choice: Choice) -> Plan:
    """The plan that says what was chosen, and why."""
    found, chosen = choice.found, choice.chosen
    job = found.job
    predicted = {
        "step_time_s": chosen.step_time_s,
        "steps_vs_today": chosen.steps,
        "examples_vs_today": chosen.examples,
        "time_vs_today": chosen.time,
        "critical_batch": choice.laws.noise.critical_batch,
    }
    if chosen.seconds is not None:
        predicted["seconds_to_target"] = chosen.seconds
    return Plan(
        job=job.name,
        spec=job.spec,
        decided=choice.decided,
        decided_by=choice.decided_by,
        objective=choice.objective.name,
        batch_size=chosen.batch_size,
        micro_batch=chosen.micro_batch,
        accumulation=chosen.accumulation,
        lr=job.lr * choice.scaling.lr,
        scaling=choice.scaling,
        schedule="constant",
        today=job.batch_size,
        flat_low=choice.flat[0],
        flat_high=choice.flat[1],
        predicted=predicted,
        why=reasons(choice),
        alternatives=alternatives(choice),
        limits=limits(choice),
        verdict=verdict(choice),
        memory_limit_bytes=choice.limit_bytes,
        deadline_s=choice.deadline_s,
        threads=found.machine.threads if found.machine.device == "cpu" else None,
    )


def verdict(choice: Choice) -> str:
    """The decision in two or three sentences, today's batch as the reference."""
    job, chosen = choice.found.job, choice.chosen
    low, high = choice.flat
    flat = f"Any B from {low} to {high} is within 10 % of the best."
    if low == high:
        flat = f"No other power of two is within 10 % of B = {low}."
    if not choice.decided:
        return (
            f"Undecided: B = {chosen.batch_size} is the best guess, but with what is "
            f"known it may cost {choice.regret:.1f} x the time of the best batch."
        )
    if chosen.batch_size == job.batch_size:
        return f"Keep B = {job.batch_size} with lr {job.lr:.3g}. {flat}"
    counted, unit = chosen.time, "time"
    if isinstance(choice.objective, Examples):
        counted, unit = chosen.examples, "examples"
    sentence = (
        f"Train with B = {chosen.batch_size} and lr {job.lr * choice.scaling.lr:.3g} "
        f"instead of B = {job.batch_size}: the same result should take "
        f"{span(counted)} of today's {unit}"
    )
    lane = choice.lane
    if lane is not None and unit == "time":
        share = lane.speedup.map(lambda x: 1 / x)
        sentence += f"; in the race it took {span(share)}"
    return f"{sentence}. {flat}"


def span(e: Estimate) -> str:
    """A ratio with its interval, two digits each."""
    high = f"{e.high:.2g}" if math.isfinite(e.high) else "no bound"
    return f"{e.value:.2g} ({e.low:.2g} to {high})"


def reasons(choice: Choice) -> tuple[Reason, ...]:
    """Where the optimum comes from, then rate, split and race."""
    laws, chosen = choice.laws, choice.chosen
    critical, half = laws.noise.critical_batch, laws.time.half_batch
    t0, t1 = laws.time.overhead, laws.time.per_example
    found = [
        Reason(
            topic="balance",
            text=f"Past about {show_number(critical.value)} examples a batch adds "
            f"little that is new; below about {show_number(half.value)} a step is "
            f"mostly its fixed {show_seconds(t0.value)}.",
            numbers={"critical_batch": critical.value, "half_batch": half.value},
            source="McCandlish et al. 2018, arXiv:1812.06162",
        ),
        Reason(
            topic="optimum",
            text=_optimum_text(laws),
            numbers={
                "critical_batch": critical.value,
                "t0_s": t0.value,
                "t1_s": t1.value,
                "optimum": math.sqrt(critical.value * half.value),
            },
            source="minimum of (t0 + t1 B)(1 + B_crit/B)",
        ),
        Reason(
            topic="lr",
            text=_rate_text(choice),
            numbers={"factor": choice.scaling.lr, "from": choice.found.job.lr},
            source=choice.scaling.source,
        ),
    ]
    if chosen.accumulation > 1:
        found.append(
            Reason(
                topic="split",
                text=f"{chosen.micro_batch} examples x {chosen.accumulation} "
                "accumulated: the fastest split that fits in "
                f"{choice.limit_bytes / 2**30:.3g} GiB.",
                numbers={"limit_bytes": choice.limit_bytes},
            )
        )
    race = _race_reason(choice)
    return (*found, race) if race else tuple(found)


def _optimum_text(laws: Laws) -> str:
    critical, half = laws.noise.critical_batch.value, laws.time.half_batch.value
    optimum = math.sqrt(critical * half)
    if laws.time.kind == "affine":
        t0, t1 = laws.time.overhead.value, laws.time.per_example.value
        return (
            f"B_opt = sqrt(B_crit * t0 / t1) = sqrt({show_number(critical)} * "
            f"{show_seconds(t0)} / {show_seconds(t1)}) = {show_number(optimum)}"
        )
    return (
        f"B_opt near sqrt(B_crit * B_half) = sqrt({show_number(critical)} * "
        f"{show_number(half)}) = {show_number(optimum)} (the {laws.time.kind} law is "
        "minimised numerically)"
    )


def _rate_text(choice: Choice) -> str:
    s, job = choice.scaling, choice.found.job
    if s.batch_from == s.batch_to:
        return f"lr {job.lr:.3g}, as today: the batch is the same."
    extra = []
    if job.betas is not None and s.beta2 != 1.0 and len(job.betas) > 1:
        extra.append(f"beta2 {job.betas[1] ** s.beta2:.4g}")
    if s.eps != 1.0:
        extra.append(f"eps x {s.eps:.3g}")
    if job.weight_decay and s.weight_decay != 1.0:
        extra.append(f"weight decay x {s.weight_decay:.3g}")
    tail = f", {', '.join(extra)}" if extra else ""
    return f"{s.rule} rule ({s.reason}): {job.lr:.3g} x {s.lr:.3g}{tail}."


def _race_reason(choice: Choice) -> Reason | None:
    race, lane = choice.found.race, choice.lane
    if race is None or lane is None:
        return None
    if lane.role == "today" and choice.decided_by != "race":
        return None
    predicted = 1 / choice.chosen.time.value
    agree = lane.speedup.low <= 1 / choice.chosen.time.low and (
        lane.speedup.high >= 1 / choice.chosen.time.high
    )
    if choice.decided_by == "race":
        text = (
            f"The laws favoured B = {choice.by_model.batch_size}; the race was won by "
            f"B = {lane.batch_size}, and the race decides."
        )
    else:
        word = "agree" if agree else "differ"
        text = (
            f"{race.heats} heats of {show_seconds(race.seconds)} each: "
            f"{span(lane.speedup)} x as fast as B = {choice.found.job.batch_size}; "
            f"the laws said {predicted:.2g} x. They {word}."
        )
    return Reason(
        topic="race",
        text=text,
        numbers={"speedup": lane.speedup.value, "predicted": predicted},
    )


def alternatives(choice: Choice) -> tuple[Alternative, ...]:
    """What the laws would choose if something were otherwise."""
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
    if len(late) >= 2:
        later = critical_from_noise(late, laws.today).critical_batch.value
        cases.append(
            (
                f"noise as late in the run ({show_number(later)})",
                later,
                laws,
            )
        )
    found = [_otherwise(choice, *case) for case in cases]
    if not isinstance(choice.objective, Examples):
        fewest = best_option(choice.options, Examples())
        penalty = fewest.time.value / choice.by_model.time.value - 1
        found.append(
            Alternative(
                condition="fewest examples instead of least time",
                batch_size=fewest.batch_size,
                penalty=penalty,
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
        if has_stalled(found.metrics, found.job.goal):
            why = "the evaluation stopped improving there, before the target"
        elif found.job.target is not None:
            why = "the target was not reached within the budget"
        said.append(
            f"Noise was followed for {reach:,} examples only ({why}); it usually "
            "grows later, which favours larger batches."
        )
    if found.race is None:
        said.append("No race was run: the comparison rests on the two laws alone.")
    else:
        said.append(
            f"The race lasted {show_seconds(found.race.seconds)} a lane; no run was "
            "made to the end at the chosen batch."
        )
    said.append(
        "The learning rate follows from today's by a rule: it is as good as today's."
    )
    if found.contention is not None and found.contention.busy:
        said.append(
            f"Times are uncertain: {found.contention.reason}. CPU time was fitted."
        )
    if isinstance(choice.objective, Energy | Money):
        said.append(
            f"{choice.objective.name.capitalize()} is modelled as proportional to time."
        )
    if isinstance(choice.objective, Time | Energy | Money) and laws.memory is None:
        said.append("Memory was not measured; the split assumes everything timed fits.")
    return tuple(said)
