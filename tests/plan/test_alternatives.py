"""Alternatives: what another condition would change, in words and numbers."""

import pytest

import rightbatch as rb
from cases import made_up


def test_a_larger_critical_batch_asks_for_a_larger_batch() -> None:
    plan = rb.decide(made_up(t0=4e-3, t1=1e-3, critical=100)).plan
    by_condition = {a.condition: a for a in plan.alternatives}
    larger = by_condition["critical batch 3 x larger"]
    assert larger.batch_size == 2 * plan.batch_size
    assert larger.consequence.startswith(f"B = {larger.batch_size}")
    if larger.penalty > 0.005:
        assert f"B = {plan.batch_size} would cost" in larger.consequence
    smaller = by_condition["critical batch 3 x smaller"]
    assert smaller.batch_size <= plan.batch_size
    assert all(a.penalty >= -1e-9 for a in plan.alternatives)


@pytest.mark.parametrize(
    ("objective", "unit"), [(rb.objectives.Examples(), "examples"), (None, "time")]
)
def test_another_objective_costs_more_of_this_one(
    objective: rb.objectives.Examples | None, unit: str
) -> None:
    found = made_up(t0=0.1, t1=1e-3, critical=100)
    other = rb.decide(found, objective).plan.alternatives[-1]
    assert "instead of" in other.condition
    assert other.consequence.endswith(f"{100 * other.penalty:.0f}% more {unit}")
