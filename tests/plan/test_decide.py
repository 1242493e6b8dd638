"""The plan that a decision ends in: it trains what was chosen, and says the same."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rightbatch as rb
from cases import Truth, made_up, raced
from rightbatch.plan.decide import decide
from rightbatch.plan.length import LEAST_LENGTH
from rightbatch.schedules.scaling import apply_scaling

TRUTH = Truth(critical=100, lr_max=0.5)
TRIED = 2 * [
    (64, 0.1),
    *((b, TRUTH.best_lr(b) * off) for b in (16, 32) for off in (0.4, 1, 2.5)),
]


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_plan_trains_at_the_rate_that_was_raced(optimizer: str) -> None:
    found = made_up(t0=4e-3, t1=1e-3, critical=100, optimizer=optimizer)
    plan = decide(raced(found, TRUTH, TRIED)).plan
    assert (plan.batch_size, plan.lr) in TRIED[1:7]
    weight = torch.nn.Parameter(torch.zeros(3))
    made = getattr(torch.optim, optimizer)([weight], lr=0.1)
    apply_scaling(made, plan.scaling)
    trained = made.param_groups[0]["lr"] * plan.lr_factor
    assert trained == pytest.approx(plan.lr)
    assert plan.batch_size == plan.micro_batch * plan.accumulation


def test_a_plan_says_what_was_chosen_and_goes_to_json_and_back(tmp_path: Path) -> None:
    decision = decide(raced(made_up(t0=4e-3, t1=1e-3, critical=100), TRUTH, TRIED))
    plan, choice = decision.plan, decision.choice
    assert plan.predicted["time_vs_today"] == choice.gain
    assert plan.predicted["critical_batch"] == choice.laws.rate.critical_batch
    assert (plan.flat_low, plan.flat_high) == choice.flat
    assert plan.grade == "raced to the target"
    assert plan.decided
    plan.save(tmp_path / "plan.json")
    assert rb.Plan.load(tmp_path / "plan.json") == plan


def test_the_planned_run_is_as_long_as_its_steps_ask_for() -> None:
    """With a schedule, as it was stretched in the race; of no length, of none."""
    found = raced(made_up(t0=4e-3, t1=1e-3, critical=100), TRUTH, TRIED)
    assert decide(found).plan.examples is None
    job = replace(found.job, run_examples=64_000.0)
    decision = decide(replace(found, job=job))
    ratio = decision.choice.chosen.examples.value
    assert ratio < 1  # today's rate is half of the best
    assert decision.plan.examples == pytest.approx(64_000 * ratio)
    planned = decide(replace(found, job=replace(job, rate="cosine")))
    chosen = planned.choice.chosen.batch_size
    stretch = planned.choice.laws.rate.prior.stretch(chosen)
    assert planned.plan.examples == pytest.approx(64_000 * stretch)
    assert stretch != pytest.approx(ratio, rel=0.1)


def test_a_planned_run_is_never_a_hundredth_of_todays() -> None:
    """However much better a law holds it."""
    truth = Truth(critical=100, lr_max=200.0)
    tried = [(64, 0.1), *((b, truth.best_lr(b) * 0.9) for b in (16, 32))]
    found = raced(made_up(critical=100), truth, tried)
    decision = decide(replace(found, job=replace(found.job, run_examples=64_000.0)))
    assert decision.choice.chosen.examples.value < LEAST_LENGTH
    assert decision.plan.examples == pytest.approx(LEAST_LENGTH * 64_000)


def test_a_race_goes_to_json_and_back(tmp_path: Path) -> None:
    """Also where a lane diverged: no number is lost."""
    wild = Truth(critical=100, edge=2.0)
    found = raced(made_up(critical=100), wild, [*TRIED, (64, 0.9)])
    found.save(tmp_path / "m.json")
    again = rb.Measurements.load(tmp_path / "m.json")
    assert repr(again.race) == repr(found.race)  # NaN is not equal to itself
    assert decide(again).plan == decide(found).plan


def test_of_what_stays_nothing_changes() -> None:
    truth = Truth(critical=100, lr_max=0.1 * (1 + 100 / 16))
    found = made_up(t0=4e-3, t1=1e-3, critical=100, today=16)
    plan = decide(raced(found, truth, [*[(16, 0.1)] * 3, (32, 0.05), (8, 0.2)])).plan
    assert (plan.batch_size, plan.lr, plan.lr_factor) == (16, 0.1, 1.0)
    for name in ("steps", "examples", "time"):
        assert plan.predicted[f"{name}_vs_today"].value == 1.0
