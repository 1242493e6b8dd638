"""What is known of a job as plain values."""

from typing import Any

import torch
from torch import nn

from cases import regression_job
from rightbatch.measure.facts import job_facts
from rightbatch.measure.measurements import JobFacts
from rightbatch.training.run_state import RunState


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def in_batch(model: nn.Module, batch: Any) -> torch.Tensor:
    output = model(batch[0])
    return nn.functional.cross_entropy(output @ output.T, torch.arange(len(output)))


def facts(coupled: Any, **more: Any) -> JobFacts:
    return job_facts(RunState.start(regression_job(**more)), "", coupled)


def test_how_many_examples_see_each_other() -> None:
    assert facts("").coupled_batch is None
    assert facts("normalization", model=normalised).coupled_batch == 16
    assert facts("loss", loss=in_batch).coupled_batch == 16
