"""Measuring: what fits half of the budget, from a checkpoint, by the job."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rightbatch as rb
from cases import regression_job, with_target
from rightbatch.core.progress import Progress
from rightbatch.measure.held_out_loss import held_out_loss
from rightbatch.measure.measurements import Measurements
from rightbatch.tuning.measure_job import LEAST_HELD_OUT, Measured, measure_job
from rightbatch.tuning.measurement_record import Record
from slow_steps import Clock, slow_job


def measured(job: rb.Job, budget_s: float) -> tuple[Measured, Measurements]:
    record = Record()
    return measure_job(job, record, Progress(), budget_s=budget_s), record.measurements


@pytest.mark.parametrize("budget_s", [30.0, 120.0])
@pytest.mark.parametrize("step_s", [0.1, 0.8, 2.0])
def test_half_of_the_budget_is_enough(
    monkeypatch: pytest.MonkeyPatch, step_s: float, budget_s: float
) -> None:
    clock = Clock(monkeypatch)
    job = slow_job(clock, fixed_s=step_s / 16, example_s=step_s * 15 / 256)
    _, seen = measured(job, budget_s)
    assert clock.now <= 0.5 * budget_s
    assert {4, 8, 16} <= {p.micro_batch for p in seen.times}
    assert seen.metrics
    assert seen.metric_s is not None
    assert seen.metric_s > 0
    if budget_s > 30 * step_s:
        assert len(seen.memory) >= 2
        assert len(seen.noise) >= 1
    if budget_s > 50 * step_s:
        assert len(seen.noise) >= 2
        assert seen.findings == ()


def test_what_remains_where_a_step_is_a_tenth_of_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three sizes of step, and today's training as far as it goes; no noise."""
    clock = Clock(monkeypatch)
    _, seen = measured(slow_job(clock, example_s=3 / 16), 30.0)
    assert clock.now <= 0.5 * 30
    assert len(seen.times) >= 3
    assert seen.noise == ()
    assert all("not checked" in f.what for f in seen.findings)


def test_a_budget_too_small_for_any_law_is_refused_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    with pytest.raises(rb.UnidentifiedError, match="budget is too small") as refused:
        measured(slow_job(clock, example_s=2.0), 20.0)
    assert "about 32 s" in refused.value.seen
    assert "--budget 1600" in refused.value.fix
    assert clock.now <= 0.5 * 20


def test_a_slow_evaluation_is_called_once_and_then_stood_in_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, calls = Clock(monkeypatch), 0

    def evaluate(model: nn.Module) -> float:
        nonlocal calls
        calls += 1
        clock.now += 5.0
        return 9.0

    job = slow_job(clock, example_s=1e-3, evaluate=evaluate, target=1.0)
    found, seen = measured(job, 60.0)
    assert calls == 1
    assert seen.evaluate_s == pytest.approx(5.0)
    assert seen.metric == "held-out loss"
    assert found.held_out is not None
    # A twentieth of 2000 examples would be 100; a call may take 60 s / 500.
    assert len(found.held_out) == 100
    assert seen.metric_s == pytest.approx(100 * 1e-3 / 3)
    assert clock.now <= 30


def test_fewer_examples_are_held_out_where_they_take_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, seen = measured(slow_job(Clock(monkeypatch), example_s=0.05), 30.0)
    assert found.held_out is not None
    assert len(found.held_out) == LEAST_HELD_OUT
    assert seen.metric_s == pytest.approx(LEAST_HELD_OUT * 0.05 / 3)


def test_a_race_can_start_from_initial_weights_without_what_is_held_out() -> None:
    job = regression_job(examples=400)
    found, _ = measured(job, 2.0)
    assert found.held_out is not None
    start = found.run.job.make_model()
    trained = held_out_loss(found.run, found.held_out)
    found.run.rewind(found.fresh)
    assert found.run.steps == found.run.examples == 0
    assert found.run.optimizer.param_groups[0]["lr"] == 0.01
    for a, b in zip(found.run.network.parameters(), start.parameters(), strict=True):
        assert torch.equal(a, b)
    assert held_out_loss(found.run, found.held_out) > trained
    indices = [
        int(i) for _ in range(30) for m in found.run.next_batch() for i in m.indices
    ]
    assert not set(indices) & set(found.held_out.tolist())


def test_todays_setting_may_diverge() -> None:
    job = regression_job(optimizer=lambda p: torch.optim.SGD(p, lr=3.0))
    _, seen = measured(with_target(job), 20.0)
    assert seen.diverged
    assert seen.metrics
    assert len(seen.times) >= 3
    _, seen = measured(with_target(regression_job()), 2.0)
    assert not seen.diverged


def test_the_cost_of_a_fast_evaluation_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)

    def evaluate(model: nn.Module) -> float:
        clock.now += 0.05
        return 9.0

    job = slow_job(clock, example_s=1e-3, evaluate=evaluate, target=1.0)
    found, seen = measured(job, 60.0)
    assert found.held_out is None
    assert seen.metric == "evaluate"
    assert seen.evaluate_s == pytest.approx(0.05)
    assert seen.metric_s == pytest.approx(0.05)


class Meter:
    """Ten joules a window."""

    name = "a meter"

    def begin(self) -> None:
        pass

    def end(self) -> float:
        return 10.0


@pytest.mark.parametrize(("budget_s", "sizes"), [(10.0, 0), (200.0, 4)])
def test_energy_is_measured_where_it_fits(
    monkeypatch: pytest.MonkeyPatch, budget_s: float, sizes: int
) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr("rightbatch.measure.energy.time", clock)
    meter: Any = (Meter(), "a meter")
    monkeypatch.setattr("rightbatch.tuning.measure_job.find_meter", lambda d: meter)
    _, seen = measured(slow_job(clock, example_s=1 / 32), budget_s)
    assert clock.now <= 0.5 * budget_s
    assert len(seen.energy) == sizes
    assert all(p.rounds for p in seen.energy)


def test_tune_begins_where_the_checkpoint_stands(tmp_path: Path) -> None:
    # Weights near the optimum, loss about 1; at the job's own the loss is above 50.
    job = with_target(regression_job(), target=0.0)
    model = job.make_model()
    with torch.no_grad():
        next(model.parameters()).copy_(torch.arange(1.0, 6.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "global_step": 5000}, tmp_path / "a.pt")
    tuning = rb.tune(job, budget_s=1, start=tmp_path / "a.pt", with_race=False)
    found = tuning.measurements
    value = job.evaluated(model)
    assert found.metrics[0].metric == pytest.approx(value, rel=0.01)
    assert (found.metrics[0].step, found.metrics[0].examples) == (5001, 5001 * 16)
    assert found.noise[0].step > 5000
    gaps = {b.step - a.step for a, b in zip(found.noise, found.noise[1:], strict=False)}
    assert len(gaps) == 1
    assert found.job.lr == 1e-3  # the checkpoint's is today's
    notes = [f.what for f in found.findings if f.code == "RB120"]
    assert notes == [
        "the run begins from a.pt: step 5,000, 80,000 examples",
        "today's lr is 0.001, not 0.01: as a.pt has it",
    ]


def test_a_checkpoint_of_another_model_ends_it(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pt")
    with pytest.raises(rb.SettingError, match="is not the job's"):
        rb.tune(regression_job(), budget_s=1, start=tmp_path / "a.pt")
    with pytest.raises(rb.RunFolderError, match="cannot read"):
        rb.tune(regression_job(), budget_s=1, start=tmp_path / "missing.pt")


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def test_noise_is_measured_for_as_many_as_see_each_other() -> None:
    record = Record()
    measure_job(regression_job(model=normalised), record, Progress(), budget_s=3)
    found = record.measurements
    assert (found.job.coupled, found.job.coupled_batch) == ("normalization", 16)
    assert found.job.grouped
    assert {point.group_size for point in found.noise} == {16}
    assert 16 in {point.micro_batch for point in found.times}
