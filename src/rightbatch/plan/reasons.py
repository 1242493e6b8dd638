"""Why: a choice in plain words, with the numbers beside every word."""

from __future__ import annotations

import math

from rightbatch.core.units import show_number, show_seconds
from rightbatch.plan.choice import Choice
from rightbatch.plan.laws import Laws
from rightbatch.plan.length import length_reason
from rightbatch.plan.objectives import Energy, Money
from rightbatch.plan.verdict import span
from rightbatch.schedules.scaling import scaled_beta2
from rightbatch.training.plan import Reason

LEAST_FIT = 0.3  # R2 below which a law is not said to fit [assumed]


def reasons(choice: Choice) -> tuple[Reason, ...]:
    """Where the optimum comes from, then rate, split, amounts and race."""
    known = choice.laws.measured and choice.laws.coupled != "loss"
    some = (
        _balance(choice.laws) if known else None,
        _optimum(choice.laws) if known and choice.laws.time.overhead_told else None,
        _pairs(choice),
        _learning_rate(choice),
        length_reason(choice),
        _coupled(choice),
        _split(choice),
        _energy(choice),
        _amount(choice),
        _race(choice),
    )
    return tuple(reason for reason in some if reason is not None)


def _balance(laws: Laws) -> Reason:
    critical, half = laws.critical.critical_batch, laws.time.half_batch
    if math.isfinite(critical.value):
        past = f"Past about {show_number(critical.value)} examples"
        past += " a batch adds little that is new"
    elif math.isfinite(critical.low):
        past = f"Below {show_number(critical.low)} examples a batch still pays in full"
    else:
        past = "As far as the noise shows, no batch is too large"
    fixed = laws.time.overhead
    if laws.time.overhead_told:
        small = f"below about {show_number(half.value)} a step is mostly its fixed "
        small += show_seconds(fixed.value)
    else:
        small = "how much of a step is fixed, the times do not tell: "
        small += f"{show_seconds(fixed.low)} to {show_seconds(fixed.high)}"
    return Reason(
        topic="balance",
        text=f"{past}; {small}.",
        numbers={"critical_batch": critical.value, "half_batch": half.value},
        source="McCandlish et al. 2018, arXiv:1812.06162",
    )


def _optimum(laws: Laws) -> Reason:
    time, critical = laws.time, laws.critical.critical_batch.value
    half, t0, t1 = time.half_batch.value, time.overhead.value, time.per_example.value
    optimum = math.sqrt(critical * half)
    if not math.isfinite(critical):
        text = (
            "B_opt = sqrt(B_crit * t0 / t1): no upper bound, since the gradient's "
            "signal cannot be told from its noise"
        )
    elif time.kind == "affine":
        text = (
            f"B_opt = sqrt(B_crit * t0 / t1) = sqrt({show_number(critical)} * "
            f"{show_seconds(t0)} / {show_seconds(t1)}) = {show_number(optimum)}"
        )
    else:
        text = (
            f"B_opt near sqrt(B_crit * B_half) = sqrt({show_number(critical)} * "
            f"{show_number(half)}) = {show_number(optimum)} (the {time.kind} law is "
            "minimised numerically)"
        )
    return Reason(
        topic="optimum",
        text=text,
        numbers={
            "critical_batch": critical,
            "t0_s": t0,
            "t1_s": t1,
            "optimum": optimum,
        },
        source="minimum of (t0 + t1 B)(1 + B_crit/B)",
    )


def _pairs(choice: Choice) -> Reason | None:
    """The batch by the noise of pairs, where the loss compares examples.

    Only where the part of pairs is seen, or is known to be little at that batch.
    """
    pairs = choice.measurements.pairs
    if pairs is None:
        return None
    batch = pairs.batch_size
    little = pairs.v2.high <= pairs.v1.low * (batch.value - 1)
    if pairs.v2.low <= 0 and not little:
        return None
    return Reason(
        topic="pairs",
        text=f"By the noise of pairs alone, B near {show_number(batch.value)} would be "
        f"soonest ({show_number(batch.low)} to {show_number(batch.high)}, by the doubt "
        "of that noise only): the decision rests on all that was measured.",
        numbers={
            "v1": pairs.v1.value,
            "v2": pairs.v2.value,
            "batch_size": pairs.batch_size.value,
        },
        source="minimum of (c0 + c1 B + c2 B^2)(1 + V1/B + V2/(B(B - 1)))",
    )


def _learning_rate(choice: Choice) -> Reason:
    job, scaling, lr = choice.measurements.job, choice.scaling, choice.chosen.lr
    rate = choice.laws.rate
    if choice.stays:
        text = f"{job.lr:.3g}, as today."
    elif choice.raced is None:
        text = (
            f"{lr:.3g} by the law of batch and rate, if today's {job.lr:.3g} is right "
            f"for B = {job.batch_size}: no race has tried others."
        )
    else:
        tried = sorted({s.lr for s in choice.raced.standings})
        batch_size = choice.chosen.batch_size
        text = (
            f"{lr:.3g}, found by racing {len(tried)} rates from {tried[0]:.3g} to "
            f"{tried[-1]:.3g}; the law fitted to all runs puts the best for "
            f"B = {batch_size} at {rate.best_lr(batch_size):.3g}."
        )
    if scaling.batch_from != scaling.batch_to:
        more = []
        if job.betas is not None and scaling.beta2 != 1.0 and len(job.betas) > 1:
            more.append(f"beta2 {scaled_beta2(job.betas[1], scaling):.4g}")
        if scaling.eps != 1.0:
            more.append(f"eps x {scaling.eps:.3g}")
        if job.weight_decay and scaling.weight_decay != 1.0:
            more.append(f"weight decay x {scaling.weight_decay:.3g}")
        if more:
            text += f" With the batch go {', '.join(more)}."
    return Reason(
        topic="lr",
        text=text,
        numbers={"factor": lr / job.lr, "from": job.lr, "power": rate.power.value},
        source=scaling.source,
    )


def _coupled(choice: Choice) -> Reason | None:
    """That what touches stays together."""
    job, chosen = choice.measurements.job, choice.chosen
    together = job.coupled_batch or job.batch_size
    if job.coupled == "normalization":
        text = f"{together} examples are normalised together, as today"
        # A micro-batch is over all ranks here, and each rank normalises its own.
        at_once = chosen.micro_batch // choice.laws.world_size
        if at_once > together:
            text += f": {at_once} are made at once, in {at_once // together} groups"
            text += f" of {together}"
        elif chosen.batch_size > together:
            split = f"{together} x {chosen.batch_size // together}"
            text += f": the plan keeps that ({chosen.batch_size} = {split})"
    elif job.coupled == "loss":
        together = chosen.batch_size
        text = (
            "The loss compares the examples of a batch, so a batch in pieces is "
            "another loss: none is offered"
        )
    else:
        return None
    return Reason(topic="coupled", text=f"{text}.", numbers={"coupled_batch": together})


def _split(choice: Choice) -> Reason | None:
    chosen = choice.chosen
    if chosen.accumulation == 1 or choice.laws.coupled:
        return None
    return Reason(
        topic="split",
        text=f"{chosen.micro_batch // choice.laws.world_size} examples x "
        f"{chosen.accumulation} accumulated: of the sizes timed, the fastest that "
        f"fits in {choice.limit_bytes / 2**30:.3g} GiB.",
        numbers={"limit_bytes": choice.limit_bytes},
    )


def _energy(choice: Choice) -> Reason | None:
    """Joules of an example where they were measured, and the batch of least energy."""
    law, chosen = choice.laws.energy, choice.chosen
    if law is None:
        return None
    batch = chosen.batch_size
    joules = law.joules(chosen.micro_batch, chosen.accumulation) / batch
    metered = [(o.energy.value, o) for o in choice.options if o.energy is not None]
    fewest, least = min(metered, key=lambda pair: pair[0])
    text = (
        f"An example takes {show_number(joules)} J at B = {batch} ({law.meter}); the "
        f"least energy to the same result is at B = {least.batch_size}"
    )
    if least.batch_size != batch and chosen.energy is not None:
        saved = fewest / chosen.energy.value
        slower = least.time.value / chosen.time.value
        text += f": {saved:.2f} of that here, in {slower:.2f} of the time"
    return Reason(
        topic="energy",
        text=f"{text}.",
        numbers={"joules_per_example": joules, "batch_size": least.batch_size},
    )


def _amount(choice: Choice) -> Reason | None:
    """Money or energy to the target, where power or price and the time are known."""
    objective, seconds = choice.objective, choice.chosen.seconds
    if seconds is None:
        return None
    hours = seconds.value / 3600
    if isinstance(objective, Money) and objective.per_hour is not None:
        total = hours * objective.per_hour
        text = f"To the target: {show_number(total)} at {objective.per_hour:g} an hour."
        return Reason(topic="money", text=text, numbers={"total": total})
    if isinstance(objective, Energy) and objective.watts is not None:
        if choice.laws.energy is not None:
            return None
        total = hours * objective.watts
        amount = f"{show_number(total)} Wh, modelled at {objective.watts:g} W"
        text = f"To the target: {amount}."
        return Reason(topic="energy", text=text, numbers={"watt_hours": total})
    return None


def _race(choice: Choice) -> Reason | None:
    """What was raced, and what the law of batch and rate makes of it."""
    race, raced, law = choice.measurements.race, choice.raced, choice.laws.rate
    if race is None or raced is None:
        return None
    diverged = sum(s.diverged for s in raced.standings)
    batches = sorted({s.batch_size for s in raced.standings})
    text = (
        f"{len(race.lanes)} runs of {len(raced.standings)} settings, B = {batches[0]} "
        f"to {batches[-1]}, {choice.evidence.grade}"
        + (f", {diverged} diverged" if diverged else "")
        + f"; {sum(s.runs for s in raced.standings)} got to the last level."
    )
    if law.r_squared < LEAST_FIT:
        text += (
            f" The law of batch and rate does not fit them (R2 {law.r_squared:.2f})."
        )
    elif math.isfinite(law.r_squared):
        text += (
            f" The law of batch and rate fits them with R2 {law.r_squared:.2f}, "
            f"critical batch {law.critical_batch}, rates as (1 + N/B)^-p with p "
            f"{span(law.power)}."
        )
    return Reason(
        topic="race",
        text=text,
        numbers={"gain": choice.gain.value, "share": choice.evidence.share},
    )
