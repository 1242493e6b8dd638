"""Measuring a job: what depends on the job."""

from torch import nn

from cases import regression_job
from rightbatch.core.progress import Progress
from rightbatch.tuning.measure_job import measure_job
from rightbatch.tuning.measurement_record import Record


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def test_noise_is_measured_for_as_many_as_see_each_other() -> None:
    record = Record()
    measure_job(regression_job(model=normalised), record, Progress(), budget_s=1)
    found = record.measurements
    assert (found.job.coupled, found.job.coupled_batch) == ("normalization", 16)
    assert {point.group_size for point in found.noise} == {16}
    assert 16 in {point.micro_batch for point in found.times}
