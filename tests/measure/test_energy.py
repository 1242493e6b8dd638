"""Energy: what a meter counts in windows of equal steps."""

from __future__ import annotations

import sys
import time
import types
from typing import Any

import numpy as np
import pytest
import torch

from cases import regression_job
from rightbatch.measure.energy import ZeusMeter, find_meter, measure_energy
from rightbatch.training.run_state import RunState


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
