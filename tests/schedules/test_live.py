"""Schedules that follow measurements are their formulas."""

from __future__ import annotations

import math

import pytest

import rightbatch as rb
from readings import reading


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


def test_calibration_is_a_factor_on_the_noise_scale() -> None:
    """Twice the noise scale asks for twice the share, and sqrt(2) of the optimum."""
    share = rb.schedules.FollowNoise(64, fraction=0.5, calibration=2.0)
    aim = share.aim(0, reading(100.0))
    assert aim is not None
    assert aim.batch == pytest.approx(100.0)
    optimum = rb.schedules.FollowNoise(64, half_batch=25.0, calibration=2.0)
    aim = optimum.aim(0, reading(400.0))
    assert aim is not None
    assert aim.batch == pytest.approx(100 * math.sqrt(2))
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(rb.SettingError, match="calibration"):
            rb.schedules.FollowNoise(64, fraction=0.5, calibration=wrong)
