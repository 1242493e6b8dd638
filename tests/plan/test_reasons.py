"""Reasons: the closed form and the amounts, with their numbers."""

from dataclasses import replace

import pytest

import rightbatch as rb
from cases import made_up, ran_to_target


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
    plan = rb.decide(replace(found, job=replace(job, coupled="loss"))).plan
    text = {r.topic: r.text for r in plan.why}["coupled"]
    assert text.endswith("a batch in pieces is another loss: none is offered.")
    assert "coupled" not in {r.topic for r in rb.decide(found).plan.why}
