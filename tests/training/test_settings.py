"""Settings that cannot work are refused, whichever way a run is asked for."""

from __future__ import annotations

import math
from typing import Any

import pytest

import rightbatch as rb
from cases import regression_job
from rightbatch.training.settings import Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_scale", math.nan),
        ("noise_scale", -1.0),
        ("noise_scale", math.inf),
        ("exponent", math.nan),
        ("clip_norm", math.nan),
        ("clip_norm", 0.0),
        ("micro_batch", 0),
        ("largest", 2.5),
        ("num_workers", -1),
    ],
)
def test_values_that_cannot_work_are_refused(name: str, value: Any) -> None:
    constant = rb.schedules.Constant(8)
    with pytest.raises(rb.SettingError, match=f"{name} must be"):
        Settings(schedule=constant, end=64.0, **{name: value})
    with pytest.raises(rb.SettingError, match=f"{name} must be"):
        rb.train(regression_job(), batch_size=8, examples=64, **{name: value})
