"""Reasons: the closed form, the rate, the race and the amounts, with their numbers."""

from dataclasses import replace

import numpy as np
import pytest

import rightbatch as rb
from cases import Truth, made_up, raced, ran_to_target
from rightbatch.measure.measurements import Contention, Measurements, PairPoint
from rightbatch.plan.decide import decide


def texts(found: Measurements) -> dict[str, str]:
    return {reason.topic: reason.text for reason in decide(found).plan.why}


TRUTH = Truth(critical=100, least=500)
TRIED = [
    (64, 0.1),
    *((b, TRUTH.best_lr(b) * off) for b in (16, 32) for off in (0.5, 1)),
]


def test_closed_form_is_said_with_its_numbers() -> None:
    plan = rb.decide(made_up(t0=4e-3, t1=1e-3, critical=100)).plan
    assert plan.batch_size in (16, 32)
    text = {r.topic: r.text for r in plan.why}["optimum"]
    assert text == "B_opt = sqrt(B_crit * t0 / t1) = sqrt(100 * 4 ms / 1 ms) = 20"


def test_amounts_are_told() -> None:
    found = ran_to_target(1000)
    for goal, topic in (
        (rb.objectives.Money(per_hour=3.0), "money"),
        (rb.objectives.Energy(watts=65), "energy"),
    ):
        plan = rb.decide(found, goal).plan
        reason = next(r for r in plan.why if r.topic == topic)
        hours = plan.predicted["seconds_to_target"].value / 3600
        expected = hours * (3.0 if topic == "money" else 65)
        assert next(iter(reason.numbers.values())) == pytest.approx(expected)


def test_a_rate_that_no_race_has_tried_is_said_to_be_so() -> None:
    found = made_up(t0=4e-3, t1=1e-3, critical=100)
    plan = decide(found).plan
    assert plan.batch_size != 64
    assert texts(found)["lr"].startswith(
        f"{plan.lr:.3g} by the law of batch and rate, if today's 0.1 is right for "
        "B = 64"
    )
    assert "race" not in texts(found)


def test_a_rate_that_was_raced_is_told_with_those_beside_it() -> None:
    found = raced(made_up(t0=4e-3, t1=1e-3, critical=100), TRUTH, TRIED)
    plan = decide(found).plan
    assert plan.batch_size in (16, 32)
    rates = sorted({lr for _, lr in TRIED})
    best = decide(found).choice.laws.rate.best_lr(plan.batch_size)
    assert texts(found)["lr"].startswith(
        f"{plan.lr:.3g}, found by racing {len(rates)} rates from {rates[0]:.3g} to "
        f"{rates[-1]:.3g}; the law fitted to all runs puts the best for "
        f"B = {plan.batch_size} at {best:.3g}."
    )


@pytest.mark.parametrize("edge", [100.0, 1e-3])
def test_todays_rate_is_kept_as_it_is(edge: float) -> None:
    """Where nothing was better, and where everything diverged."""
    truth = Truth(critical=100, lr_max=0.1 * (1 + 100 / 16), edge=edge)
    found = made_up(t0=4e-3, t1=1e-3, critical=100, today=16)
    tried = [*[(16, 0.1)] * 3, (32, 0.05), (8, 0.2)]
    assert texts(raced(found, truth, tried))["lr"] == "0.1, as today."


def test_the_race_is_told_in_numbers() -> None:
    wild = replace(TRUTH, edge=4.0)
    tried = [(64, 0.1), (64, 1.0), *TRIED, *TRIED]
    found = raced(made_up(critical=100), wild, tried, scatter=0.02)
    text = texts(found)["race"]
    assert text.startswith(
        "12 runs of 6 settings, B = 16 to 64, raced to the target, 1 diverged; "
        "11 got to the last level. The law of batch and rate fits them with R2 "
    )
    choice = decide(found).choice
    assert f"critical batch {choice.laws.rate.critical_batch}" in text
    reason = next(r for r in decide(found).plan.why if r.topic == "race")
    assert reason.numbers == {"gain": choice.gain.value, "share": 1.0}


def test_what_follows_the_batch_is_told() -> None:
    found = made_up(t0=0.1, t1=1e-4, critical=1000, optimizer="AdamW")
    plan = decide(found).plan
    assert plan.batch_size > 64
    text = texts(found)["lr"]
    for word in ("With the batch go beta2 ", "eps x ", "weight decay x "):
        assert word in text


def test_what_stays_together_is_said() -> None:
    found = made_up(t0=0.1, t1=1e-4, critical=1000, today=8)
    job = replace(found.job, coupled="normalization", coupled_batch=8)
    plan = rb.decide(replace(found, job=job)).plan
    reason = {r.topic: r for r in plan.why}["coupled"]
    assert reason.text == (
        "8 examples are normalised together, as today: the plan keeps that "
        f"({plan.batch_size} = 8 x {plan.accumulation})."
    )
    assert reason.numbers == {"coupled_batch": 8}
    plan = rb.decide(replace(found, job=replace(job, grouped=True))).plan
    text = {r.topic: r.text for r in plan.why}["coupled"]
    groups = plan.micro_batch // 8
    assert groups > 1
    assert text.endswith(
        f"{plan.micro_batch} are made at once, in {groups} groups of 8."
    )
    plan = rb.decide(replace(found, job=replace(job, coupled="loss"))).plan
    text = {r.topic: r.text for r in plan.why}["coupled"]
    assert text.endswith("a batch in pieces is another loss: none is offered.")
    assert "coupled" not in {r.topic for r in rb.decide(found).plan.why}


def test_a_fixed_part_that_busy_clocks_do_not_tell_is_no_fact() -> None:
    """Every visit took some other multiple of what the step takes alone."""
    random = np.random.default_rng(0)
    found, times = made_up(), []
    for p in found.times:
        rounds = tuple(p.step_time_s.value * np.exp(random.exponential(1.5, 9)))
        times.append(replace(p, rounds=rounds, process_rounds=rounds))
    busy = Contention(busy=True, stalled=0.9, reason="the machine was busy")
    said = texts(replace(found, times=tuple(times), contention=busy))
    assert "is fixed, the times do not tell" in said["balance"]
    assert "optimum" not in said
    quiet = texts(found)
    assert "mostly its fixed 2 ms" in quiet["balance"]
    assert "optimum" in quiet


def test_the_noise_of_pairs_names_its_batch() -> None:
    found = made_up(t0=0.1, t1=1e-4, critical=1000, today=8)
    number = rb.Estimate(value=96.0, low=60.0, high=150.0, unit="examples")
    pairs = PairPoint(step=9, v1=number, v2=number, batch_size=number)
    said = texts(replace(found, pairs=pairs))["pairs"]
    assert said.startswith(
        "By the noise of pairs alone, B near 96 would be soonest (60"
    )
    little = rb.Estimate(value=9.0, low=-60.0, high=80.0, unit="examples^2")
    assert texts(replace(found, pairs=replace(pairs, v2=little)))["pairs"] == said
    blind = rb.Estimate(value=-9.0, low=-6e4, high=8e4, unit="examples^2")
    assert "pairs" not in texts(replace(found, pairs=replace(pairs, v2=blind)))
    assert "pairs" not in texts(found)


@pytest.mark.parametrize("rate", ["", "cosine"])
def test_a_run_of_another_length_is_told(rate: str) -> None:
    made = made_up()
    kept = decide(made).plan
    assert "length" not in {reason.topic for reason in kept.why}
    job = replace(made.job, run_examples=50_000.0, rate=rate)
    plan = decide(replace(made, job=job)).plan
    assert plan.examples is not None
    assert plan.examples != pytest.approx(50_000, rel=0.05)
    (told,) = [reason.text for reason in plan.why if reason.topic == "length"]
    assert f"{plan.examples:,.0f} examples, today's 50,000" in told
    assert ("stretched" in told) == bool(rate)
