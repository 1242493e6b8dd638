"""Measuring: from a checkpoint, and what depends on the job."""

from pathlib import Path

import pytest
import torch
from torch import nn

import rightbatch as rb
from cases import regression_job, with_target
from rightbatch.core.progress import Progress
from rightbatch.tuning.measure_job import measure_job
from rightbatch.tuning.measurement_record import Record


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
    measure_job(regression_job(model=normalised), record, Progress(), budget_s=1)
    found = record.measurements
    assert (found.job.coupled, found.job.coupled_batch) == ("normalization", 16)
    assert {point.group_size for point in found.noise} == {16}
    assert 16 in {point.micro_batch for point in found.times}
