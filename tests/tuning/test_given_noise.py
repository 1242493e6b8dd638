"""Noise of a real run in the place of measuring it."""

from pathlib import Path

import pytest
import torch
from torch import nn

import rightbatch as rb
from cases import made_up, regression_job, with_target
from rightbatch.measure.load_noise import load_noise
from rightbatch.measure.measurements import THIS_RUN
from rightbatch.training.run_state import RunState
from rightbatch.tuning.given_noise import given_noise
from watched_loops import draws, train, watch


def saved(path: Path, model: nn.Module) -> Path:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, optimizer) as monitor:
        train(model, optimizer, draws(regression_job(), 16), 40)
    monitor.save(path)
    return path


def test_tune_records_the_noise_and_measures_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object, **__: object) -> None:
        raise AssertionError("noise was measured")

    monkeypatch.setattr("rightbatch.measure.trajectory.measure_noise", measured)
    path = saved(tmp_path / "noise.json", nn.Linear(5, 1, bias=False))
    job = with_target(regression_job(), target=0.0)
    tuning = rb.tune(job, budget_s=1, noise=path, with_race=False)
    found = tuning.measurements
    assert found.noise == load_noise(path)
    assert found.noise_source == "noise.json, a run of 640 examples"
    assert found.metrics  # it was trained for a state to race from
    notes = [f for f in found.findings if f.code == "RB121"]
    assert [f.severity for f in notes] == ["note"]
    assert f"of {found.noise_source}: none is measured" in notes[0].what
    found.save(tmp_path / "measurements.json")
    again = rb.Measurements.load(tmp_path / "measurements.json")
    assert again.noise_source == found.noise_source
    assert rb.decide(again).plan == tuning.plan


def test_points_may_be_given_themselves() -> None:
    points = made_up().noise
    known = given_noise(points)
    assert known.points == points
    assert known.source == f"a run of {points[-1].examples:,} examples"
    assert made_up().noise_source == THIS_RUN
    with pytest.raises(rb.UnidentifiedError, match="too few points"):
        given_noise(points[:1])
    with pytest.raises(rb.RunFolderError, match="cannot read"):
        given_noise("missing.json")


def test_the_noise_of_another_model_is_told(tmp_path: Path) -> None:
    path = saved(tmp_path / "noise.json", nn.Linear(5, 1))
    run = RunState.start(regression_job())
    _, finding = given_noise(path).findings(run)
    assert finding.severity == "warning"
    assert "6 trained parameters, the job's has 5" in finding.what
