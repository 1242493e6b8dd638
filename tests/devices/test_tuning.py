"""A whole tuning on a device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import rightbatch as rb
from device_cases import GPT2, Gpt, classifier_job, gpt_job, large
from rightbatch.plan.laws import laws_of

Record = Callable[[str, object], None]


def test_a_race_goes_by_the_time_of_the_device(
    device: torch.device, record_property: Record
) -> None:
    """CPU time says nothing of a GPU's steps: the law is fitted to the clock."""
    tuning = rb.tune(classifier_job(device), budget_s=30 if large(device) else 5)
    measured = tuning.measurements
    assert measured.machine.device == device.type
    assert len(measured.times) >= 3
    assert "Race" in (measured.seconds or {})
    record_property("batch for the classifier", f"{tuning.plan.batch_size:,}")
    if large(device):  # on a busy CPU there may be no time left for one
        assert measured.race is not None
        assert len({lane.batch_size for lane in measured.race.lanes}) > 1
        assert measured.contention is not None
        assert not measured.contention.busy
        assert laws_of(measured).time.clock == "wall"


def test_the_large_one_has_the_parameters_of_gpt2() -> None:
    with torch.device("meta"):
        model = Gpt(*GPT2)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(
        124.4e6, rel=1e-3
    )


@pytest.mark.slow
def test_a_gpt_is_tuned(device: torch.device, record_property: Record) -> None:
    """Of 124 M parameters in five minutes on a GPU; a tiny one on the CPU."""
    job = gpt_job(device)
    tuning = rb.tune(job, budget_s=300 if large(device) else 5)
    plan, measured = tuning.plan, tuning.measurements
    record_property("plan for the 124 M GPT", plan.verdict)
    assert len(measured.times) >= 3
    assert measured.noise
    assert plan.micro_batch <= plan.batch_size
    if large(device):  # on a busy CPU there may be no time left for one
        assert measured.race is not None
