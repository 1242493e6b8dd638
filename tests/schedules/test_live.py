"""Schedules that follow measurements are their formulas."""

from __future__ import annotations

import dataclasses
import math

import pytest

import rightbatch as rb
from readings import reading
from rightbatch.schedules.from_json import schedule_from


def test_live_schedules_are_their_formulas() -> None:
    optimum = rb.schedules.FollowNoise(64, half_batch=25.0, most=500).aim(
        0, reading(400.0)
    )
    assert optimum is not None
    assert optimum.batch == pytest.approx(100.0)
    assert optimum.low == pytest.approx(100 / math.sqrt(1.2))
    share = rb.schedules.FollowNoise(64, fraction=0.5, most=500).aim(0, reading(4000.0))
    assert share is not None
    assert share.batch == share.high == 500
    ratio = rb.schedules.SignalToNoise(64).aim(0, reading(1.0, signal=1.0))
    assert ratio is not None
    assert ratio.batch == pytest.approx(256)
    assert ratio.low < 256 < ratio.high
    assert rb.schedules.FollowNoise(64, fraction=0.5).aim(0, None) is None


def test_a_calibration_multiplies_the_noise_scale_and_its_interval() -> None:
    plain = rb.schedules.FollowNoise(64, half_batch=25.0, most=500)
    quarter = dataclasses.replace(plain, calibration=0.25)
    seen, expected = reading(400.0), plain.aim(0, reading(100.0))
    aim = quarter.aim(0, seen)
    assert aim is not None
    assert expected is not None
    assert (aim.batch, aim.low, aim.high) == pytest.approx(
        (expected.batch, expected.low, expected.high)
    )
    assert "0.25 x noise scale" in aim.reason
    assert "0.25 x noise scale" in str(quarter)
    assert schedule_from(quarter.to_plain()) == quarter
    with pytest.raises(rb.SettingError, match="must be positive"):
        rb.schedules.FollowNoise(64, fraction=0.5, calibration=0.0)
