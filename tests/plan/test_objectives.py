"""Objectives: by name, and what each of them needs."""

import pytest

import rightbatch as rb
from cases import made_up
from rightbatch.plan.choice import choose
from rightbatch.plan.objectives import objective_named


@pytest.mark.parametrize("name", ["time", "examples", "money"])
def test_objectives_by_name(name: str) -> None:
    assert choose(made_up(), objective_named(name)).objective.name == name


def test_energy_needs_power_and_is_labelled() -> None:
    with pytest.raises(rb.SettingError, match="neither measured nor given"):
        rb.decide(made_up(), objective_named("energy"))
    plan = rb.decide(made_up(), objective_named("energy", watts=65)).plan
    assert any("modelled" in text for text in plan.limits)
    for name, more in (("time", {"watts": 3.0}), ("energy", {"price": 1.0})):
        with pytest.raises(rb.SettingError, match="no effect"):
            objective_named(name, **more)
