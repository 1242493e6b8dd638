"""The law of energy, and the objective that is made of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import rightbatch as rb
from cases import made_up
from rightbatch.core.estimate import Estimate
from rightbatch.fit.energy_law import fit_energy
from rightbatch.measure.measurements import EnergyPoint, Measurements


def point(size: int, joules: float) -> EnergyPoint:
    rounds = (joules, 1.01 * joules, 0.99 * joules)
    value = Estimate.median(rounds, "J")
    return EnergyPoint(micro_batch=size, joules=value, rounds=rounds, meter="made up")


def metered(e0: float, e1: float) -> Measurements:
    sizes = (1, 4, 16, 64, 256)
    energy = tuple(point(b, e0 + e1 * b) for b in sizes)
    found = made_up()
    # Noise was seen over half a pass: enough for advice.
    job = dataclasses.replace(found.job, examples=2 * found.noise[-1].examples)
    return dataclasses.replace(found, job=job, energy=energy)


def test_the_law_finds_its_parameters() -> None:
    law = fit_energy([point(b, 3.0 + 0.5 * b) for b in (1, 8, 64)])
    np.testing.assert_allclose(law.parameters, [3.0, 0.5], rtol=1e-6)
    assert law.joules(8, 4) == pytest.approx(4 * 7.0)
    assert law.draws.shape[1] == 2
    flat = fit_energy([point(1, 5.0), point(100, 4.0)])  # noise: no negative slope
    assert flat.parameters[1] >= 0
    with pytest.raises(rb.UnidentifiedError, match="at least 2"):
        fit_energy([point(1, 1.0)])


def test_the_batch_of_least_energy_is_another_than_that_of_least_time() -> None:
    """With much fixed energy in a step larger batches are better than for time."""
    found = metered(e0=100.0, e1=0.01)
    time_plan = rb.decide(found, rb.objectives.Time()).plan
    energy_plan = rb.decide(found, rb.objectives.Energy()).plan
    assert energy_plan.batch_size > time_plan.batch_size
    text = next(r.text for r in time_plan.why if r.topic == "energy")
    assert "made up" in text
    assert f"B = {energy_plan.batch_size}" in text
    little = rb.decide(metered(e0=1e-6, e1=1.0), rb.objectives.Energy()).plan
    assert little.batch_size < time_plan.batch_size
    assert not any("modelled" in limit for limit in energy_plan.limits)
    assert "of today's energy" in energy_plan.verdict
    assert "energy_vs_today" in energy_plan.predicted
    assert all(a.penalty >= -1e-9 for a in energy_plan.alternatives)


def test_measured_energy_goes_to_json_and_back(tmp_path: Any) -> None:
    found = metered(1.0, 0.1)
    found.save(tmp_path / "m.json")
    assert Measurements.load(tmp_path / "m.json").energy == found.energy
