"""The plan that a decision ends in: it trains what was chosen, and says the same."""

from pathlib import Path

import pytest
import torch

import rightbatch as rb
from cases import Truth, made_up, raced
from rightbatch.plan.decide import decide
from rightbatch.schedules.scaling import apply_scaling

TRUTH = Truth(critical=100, lr_max=0.5)
TRIED = [
    (64, 0.1),
    *((b, TRUTH.best_lr(b) * off) for b in (16, 32) for off in (0.4, 1)),
]


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_plan_trains_at_the_rate_that_was_raced(optimizer: str) -> None:
    found = made_up(t0=4e-3, t1=1e-3, critical=100, optimizer=optimizer)
    plan = decide(raced(found, TRUTH, TRIED)).plan
    assert (plan.batch_size, plan.lr) in TRIED[1:]
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
