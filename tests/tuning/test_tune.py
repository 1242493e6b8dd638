"""`tune` from Python: its phases, and what it refuses."""

import pytest
import torch

import rightbatch as rb
from cases import regression_job
from rightbatch.core.progress import Phase, Progress
from rightbatch.measure.energy import find_meter


class Listener(Progress):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def ended(self, phase: Phase, finished: bool) -> None:
        assert finished
        assert phase.summary
        self.heard.append(phase.name)


def test_tune_from_python() -> None:
    listener = Listener()
    tuning = rb.tune(regression_job(examples=2000), budget_s=15, progress=listener)
    assert listener.heard[:3] == ["Check the job", "Time and memory", "Gradient noise"]
    assert tuning.plan.batch_size >= 1
    race = tuning.measurements.race
    assert race is not None or any("No race" in limit for limit in tuning.plan.limits)
    assert race is None or race.metric == "held-out loss"
    assert list(tuning.measurements.seconds or {}) == listener.heard


def test_budgets_are_refused_below_a_second() -> None:
    for budget in (0.5, float("nan"), float("inf")):
        with pytest.raises(rb.SettingError, match="budget"):
            rb.tune(regression_job(), budget_s=budget)


def test_no_meter_is_told_before_anything_is_measured() -> None:
    meter, why = find_meter(torch.device("cpu"))
    if meter is not None:
        pytest.skip("this machine counts energy")
    assert why.startswith("unavailable")
    with pytest.raises(rb.SettingError, match="neither measured nor given") as caught:
        rb.tune(regression_job(), rb.objectives.Energy(), budget_s=2)
    assert "--watts" in str(caught.value)
