"""Energy: what a meter counts becomes a law, and an objective of its own."""

from __future__ import annotations

import dataclasses
import sys
import time
import types
from typing import Any

import numpy as np
import pytest
import torch

import rightbatch as rb
from cases import made_up, regression_job
from rightbatch.core.estimate import Estimate
from rightbatch.fit.energy import fit_energy
from rightbatch.measure.energy import ZeusMeter, find_meter, measure_energy
from rightbatch.measure.record import EnergyPoint, Measurements
from rightbatch.training.run_state import RunState


def point(size: int, joules: float) -> EnergyPoint:
    rounds = (joules, 1.01 * joules, 0.99 * joules)
    value = Estimate.median(rounds, "J")
    return EnergyPoint(micro_batch=size, joules=value, rounds=rounds, meter="made up")


def metered(e0: float, e1: float) -> Measurements:
    sizes = (1, 4, 16, 64, 256)
    energy = tuple(point(b, e0 + e1 * b) for b in sizes)
    return dataclasses.replace(made_up(), energy=energy)


class Counter:
    """So many watts, by the clock."""

    name = "a counter"

    def __init__(self, watts: float) -> None:
        self.watts, self.started, self.windows = watts, 0.0, 0

    def begin(self) -> None:
        self.started = time.perf_counter()
        self.windows += 1

    def end(self) -> float:
        return self.watts * (time.perf_counter() - self.started)


def test_joules_of_a_step_are_power_times_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock of our own, on which a step takes 1 ms and 10 us an example."""
    now = 0.0
    clock = types.SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr("rightbatch.measure.energy.time", clock)
    monkeypatch.setattr(sys.modules[__name__], "time", clock)

    def loss(model: Any, batch: Any) -> Any:
        nonlocal now
        now += 1e-3 + 1e-5 * len(batch[0])
        return model(batch[0]).square().mean()

    run = RunState.start(regression_job(examples=2000, width=64, loss=loss))
    counter = Counter(100.0)
    points = measure_energy(
        run, [1, 8, 64, 512, 1024, 2000], counter, window_s=0.05, rounds=3
    )
    assert [p.micro_batch for p in points] == [1, 64, 512, 2000]
    assert counter.windows == 12
    for point in points:
        expected = 100 * (1e-3 + 1e-5 * point.micro_batch)
        assert point.rounds == pytest.approx([expected] * 3)


def test_windows_in_which_nothing_was_counted_are_left_out() -> None:
    run = RunState.start(regression_job())

    class Stuck(Counter):
        def end(self) -> float:
            return 0.0 if self.windows % 2 else super().end()

    points = measure_energy(run, [1, 8], Stuck(10.0), window_s=0.01, rounds=4)
    assert all(j > 0 for p in points for j in p.rounds)
    nothing = measure_energy(run, [1], Counter(0.0), window_s=0.01)
    assert nothing == ()


def test_the_law_finds_its_parameters() -> None:
    law = fit_energy([point(b, 3.0 + 0.5 * b) for b in (1, 8, 64)])
    np.testing.assert_allclose(law.parameters, [3.0, 0.5], rtol=1e-6)
    assert law.joules(8, 4) == pytest.approx(4 * 7.0)
    assert law.half_batch == pytest.approx(6.0)
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


def test_no_meter_is_told_before_anything_is_measured() -> None:
    meter, why = find_meter(torch.device("cpu"))
    if meter is not None:
        pytest.skip("this machine counts energy")
    assert why.startswith("unavailable")
    with pytest.raises(rb.SettingError, match="neither measured nor given") as caught:
        rb.tune(regression_job(), rb.objectives.Energy(), budget_s=2)
    assert "--watts" in str(caught.value)


class Window:
    gpu_energy = {0: 7.0}  # ruff: ignore[mutable-class-default]
    cpu_energy: Any = None


class Monitor:
    def __init__(self, **settings: Any) -> None:
        self.open: list[str] = []

    def begin_window(self, key: str, sync_execution: bool) -> None:
        self.open.append(key)

    def end_window(self, key: str, sync_execution: bool) -> Window:
        self.open.remove(key)
        return Window()


def test_zeus_is_read_for_the_processor_of_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the CPU counts nothing zeus says None: no meter, not zero joules."""
    module = types.ModuleType("zeus.monitor")
    module.ZeusMonitor = Monitor  # pyrefly: ignore
    monkeypatch.setitem(sys.modules, "zeus", types.ModuleType("zeus"))
    monkeypatch.setitem(sys.modules, "zeus.monitor", module)
    meter, name = find_meter(torch.device("cuda:0"))
    assert meter is not None
    assert name == "zeus, GPU counter"
    meter.begin()
    assert meter.end() == 7.0
    nothing, why = find_meter(torch.device("cpu"))
    assert nothing is None
    assert "counts no energy" in why
    assert np.isnan(_read(ZeusMeter(Monitor(), gpu=False)))


def _read(meter: ZeusMeter) -> float:
    meter.begin()
    return meter.end()
