"""Why: a choice in plain words, with the numbers beside every word."""

from __future__ import annotations

import math

from rightbatch.core.estimate import Estimate
from rightbatch.core.units import show_number, show_seconds
from rightbatch.measure.record import Candidate
from rightbatch.plan.caveats import alternatives, limits
from rightbatch.plan.choice import Choice
from rightbatch.plan.evidence import LEAST_SHARE, PASSES
from rightbatch.plan.objectives import Energy, Examples, Money
from rightbatch.plan.options import Laws
from rightbatch.schedules.scaling import scaled_beta2
from rightbatch.training.plan import Plan, Reason

VAGUE = 4.0  # end over end of a race's interval [assumed]


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
    if chosen.energy is not None:
        predicted["energy_vs_today"] = chosen.energy
    return Plan(
        job=job.name,
        spec=job.spec,
        decided=choice.decided,
        decided_by=choice.decided_by,
        objective=choice.objective.name,
        batch_size=chosen.batch_size,
        micro_batch=chosen.micro_batch,
        accumulation=chosen.accumulation,
        optimizer=job.optimizer,
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
        half_batch=choice.laws.time.half_batch.value,
    )


def verdict(choice: Choice) -> str:
    """The decision in two or three sentences, today's batch as the reference."""
    job, chosen = choice.found.job, choice.chosen
    low, high = choice.flat
    flat = f"Any B from {low} to {high} is within 10 % of the best."
    if low == high:
        flat = f"No other power of two is within 10 % of B = {low}."
    if choice.evidence.contradiction:
        return (
            f"Undecided, since the race and the laws contradict each other: "
            f"{choice.evidence.contradiction}. B = {chosen.batch_size} is the best "
            f"guess. {settle(choice)}"
        )
    if not choice.sure:
        return (
            f"Undecided: B = {chosen.batch_size} is the best guess, but with what is "
            f"known it may cost {choice.regret:.1f} x what the best batch does. "
            f"{settle(choice)}"
        )
    if chosen.batch_size == job.batch_size:
        keep = "Keep" if choice.decided else "Probably right as it is:"
        said = f"{keep} B = {job.batch_size} with lr {job.lr:.3g}. {flat}"
        return said if choice.decided else f"{said} {settle(choice)}"
    counted, unit = chosen.time, "time"
    if isinstance(choice.objective, Examples):
        counted, unit = chosen.examples, "examples"
    if isinstance(choice.objective, Energy) and chosen.energy is not None:
        counted, unit = chosen.energy, "energy"
    act = "Train with" if choice.decided else "Worth trying:"
    claim = "the same result should take" if choice.decided else "the laws alone give"
    sentence = (
        f"{act} B = {chosen.batch_size} and lr {job.lr * choice.scaling.lr:.3g} "
        f"instead of B = {job.batch_size}: {claim} {span(counted)} of today's {unit}"
    )
    candidate = choice.candidate
    if candidate is not None and unit == "time" and not vague(candidate):
        share = candidate.speedup.map(lambda x: 1 / x)
        sentence += f"; in the race it took {span(share)}"
    if unit in ("examples", "energy"):
        sentence += f" and {span(chosen.time)} of its time"
    return f"{sentence}. {flat if choice.decided else settle(choice)}"


def vague(candidate: Candidate) -> bool:
    """Whether a candidate's interval is so wide that quoting it would mislead."""
    return candidate.speedup.high > VAGUE * candidate.speedup.low


def settle(choice: Choice) -> str:
    """What would settle an undecided choice: more of what is least known."""
    laws, evidence = choice.laws, choice.evidence
    critical = laws.noise.critical_batch
    if evidence.contradiction:
        more = (
            "a longer race (raise --budget), or whole runs at both settings: one of "
            "the two is wrong about this job"
        )
    elif choice.sure:
        more = _longer_race(choice)
    elif laws.time.half_batch.relative > critical.relative:
        more = "a quieter machine, or a larger --budget: step times are least known"
    elif choice.found.race is None and not isinstance(choice.objective, Examples):
        more = "a race (leave out --no-race, or raise --budget)"
    else:
        more = f"a larger --budget: the critical batch, {critical}, is least known"
    return f"What would settle it: {more}."


def _longer_race(choice: Choice) -> str:
    """The race that would prove a choice of which the laws are sure."""
    evidence, today = choice.evidence, choice.today
    needed = LEAST_SHARE * evidence.run_examples
    run = "the way to the target"
    if not evidence.run_known:
        run = f"a run (taken as {PASSES} passes over the data: no target was reached)"
    seconds = needed / today.batch_size * today.step_time_s.value
    seen = "none was run"
    if evidence.raced_examples:
        seen = f"it trained on {show_number(evidence.raced_examples)}"
    elif choice.found.race is not None:
        seen = "this batch was not in it, or no candidate got better than the start"
    return (
        f"a race against today's setting over a hundredth of {run}, "
        f"{show_number(needed)} examples or {show_seconds(seconds)} a candidate and "
        f"round; {seen}. Raise --budget, or train both"
    )


def span(e: Estimate) -> str:
    """A ratio with its interval, two digits each."""
    high = f"{e.high:.2g}" if math.isfinite(e.high) else "no bound"
    return f"{e.value:.2g} ({e.low:.2g} to {high})"


def reasons(choice: Choice) -> tuple[Reason, ...]:
    """Where the optimum comes from, then rate, split and race."""
    laws, chosen = choice.laws, choice.chosen
    critical, half = laws.noise.critical_batch, laws.time.half_batch
    past = f"Past about {show_number(critical.value)} examples"
    past += " a batch adds little that is new"
    if not math.isfinite(critical.value):
        past = "As far as the noise tells, no batch is too large"
    if math.isfinite(critical.low) and not math.isfinite(critical.value):
        past = f"Below {show_number(critical.low)} examples a batch still pays in full"
    found = [
        Reason(
            topic="balance",
            text=f"{past}; below about {show_number(half.value)} a step is mostly "
            f"its fixed {show_seconds(laws.time.overhead.value)}.",
            numbers={"critical_batch": critical.value, "half_batch": half.value},
            source="McCandlish et al. 2018, arXiv:1812.06162",
        ),
        Reason(
            topic="optimum",
            text=_optimum_text(laws),
            numbers={
                "critical_batch": critical.value,
                "t0_s": laws.time.overhead.value,
                "t1_s": laws.time.per_example.value,
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
    found += _energy(choice)
    found += _amount(choice)
    race = _race_reason(choice)
    return (*found, race) if race else tuple(found)


def _energy(choice: Choice) -> list[Reason]:
    """Joules of an example where they were measured, and the batch of least energy."""
    law, chosen = choice.laws.energy, choice.chosen
    if law is None:
        return []
    batch = chosen.batch_size
    joules = law.joules(chosen.micro_batch, chosen.accumulation) / batch
    energies = [(o.energy.value, o) for o in choice.options if o.energy is not None]
    fewest, least = min(energies, key=lambda pair: pair[0])
    saved = fewest / chosen.energy.value if chosen.energy else 1.0
    text = (
        f"An example takes {show_number(joules)} J at B = {batch} ({law.meter}); the "
        f"least energy to the same result is at B = {least.batch_size}"
    )
    if least.batch_size != batch:
        slower = least.time.value / chosen.time.value
        text += f": {saved:.2f} of that here, in {slower:.2f} of the time"
    return [
        Reason(
            topic="energy",
            text=f"{text}.",
            numbers={"joules_per_example": joules, "batch_size": least.batch_size},
        )
    ]


def _amount(choice: Choice) -> list[Reason]:
    """Money or energy to the target, where power or price and the time are known."""
    objective, seconds = choice.objective, choice.chosen.seconds
    if seconds is None:
        return []
    hours = seconds.scale(1 / 3600)
    if isinstance(objective, Money) and objective.per_hour is not None:
        total = hours.scale(objective.per_hour)
        text = f"To the target: {show_number(total.value)} at {objective.per_hour:g} an"
        return [
            Reason(topic="money", text=f"{text} hour.", numbers={"total": total.value})
        ]
    measured = choice.laws.energy is not None
    if isinstance(objective, Energy) and objective.watts is not None and not measured:
        total = hours.scale(objective.watts, "Wh")
        text = f"To the target: {show_number(total.value)} Wh, modelled at"
        return [
            Reason(
                topic="energy",
                text=f"{text} {objective.watts:g} W.",
                numbers={"watt_hours": total.value},
            )
        ]
    return []


def _optimum_text(laws: Laws) -> str:
    critical, half = laws.noise.critical_batch.value, laws.time.half_batch.value
    if not math.isfinite(critical):
        return (
            "B_opt = sqrt(B_crit * t0 / t1): no upper bound, since the gradient's "
            "signal is not told from its noise"
        )
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
        extra.append(f"beta2 {scaled_beta2(job.betas[1], s):.4g}")
    if s.eps != 1.0:
        extra.append(f"eps x {s.eps:.3g}")
    if job.weight_decay and s.weight_decay != 1.0:
        extra.append(f"weight decay x {s.weight_decay:.3g}")
    tail = f", {', '.join(extra)}" if extra else ""
    return f"{s.rule} rule ({s.reason}): {job.lr:.3g} x {s.lr:.3g}{tail}."


def _race_reason(choice: Choice) -> Reason | None:
    race, candidate = choice.found.race, choice.candidate
    if race is None or candidate is None:
        return None
    if candidate.role == "today" and choice.decided_by != "race":
        return None
    predicted = 1 / choice.chosen.time.value
    agree = candidate.speedup.low <= 1 / choice.chosen.time.low and (
        candidate.speedup.high >= 1 / choice.chosen.time.high
    )
    if choice.decided_by == "race":
        text = (
            f"The laws favoured B = {choice.by_model.batch_size}; the race was won by "
            f"B = {candidate.batch_size}, and the race decides."
        )
    else:
        word = "They agree." if agree else "They differ."
        if vague(candidate):
            word = "So wide an interval tells little."
        text = (
            f"{race.rounds} rounds of {show_seconds(race.seconds)} each: "
            f"{span(candidate.speedup)} x as fast as B = {choice.found.job.batch_size}; "
            f"the laws said {predicted:.2g} x. {word}"
        )
    return Reason(
        topic="race",
        text=text,
        numbers={"speedup": candidate.speedup.value, "predicted": predicted},
    )
