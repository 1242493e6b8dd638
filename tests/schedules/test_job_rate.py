"""The schedule that a job brings: a Rate, a word or a scheduler, or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import rightbatch as rb
from cases import regression_job
from rightbatch.schedules.job_rate import rate_of

COSINE = rb.schedules.Rate.cosine(2560, warmup=256)


def stepping(optimizer: torch.optim.Optimizer) -> Any:
    return lr_scheduler.StepLR(optimizer, 10, gamma=0.5)


def test_the_three_ways_to_say_it() -> None:
    job = regression_job()
    assert rate_of(job) is None
    assert rate_of(replace(job, rate=COSINE)) is COSINE
    word = replace(job, rate="warmup:1epochs+cosine:10epochs", epochs=10)
    assert rate_of(word) == COSINE
    made = rate_of(replace(job, rate=stepping, epochs=2))
    assert made == rb.schedules.Rate.steps({0: 1.0, 160: 0.5, 320: 0.25, 480: 0.125})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rate": "cubic:3"}, "cannot be read"),
        ({"rate": stepping}, "needs the length"),
        ({"rate": "cosine:2epochs", "epochs": 4}, "zero before the run ends"),
    ],
)
def test_others_are_refused_when_a_run_starts_and_by_check(
    change: dict[str, Any], reason: str
) -> None:
    job = replace(regression_job(), **change)
    with pytest.raises(rb.SettingError, match=reason):
        rate_of(job)
    with pytest.raises(rb.SettingError, match=reason):
        rb.train(job, epochs=4)
    with pytest.raises(rb.JobError, match=reason):
        rb.check(job).raise_errors()


def test_a_scheduler_may_end_with_its_last_step() -> None:
    """Zero in the last step alone is how today's run ends."""

    def to_zero(optimizer: torch.optim.Optimizer) -> Any:
        return lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=31)

    rate = rate_of(replace(regression_job(), rate=to_zero, epochs=2))
    assert rate is not None
    assert (rate.factors[-1], rate.examples[-1]) == (0.0, 31 * 16)
