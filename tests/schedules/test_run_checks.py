"""Schedules held against a run before it begins."""

from __future__ import annotations

import math

import pytest

import rightbatch as rb
from rightbatch.schedules.run_checks import check_decay_is_met, check_schedule


def test_a_schedule_is_held_against_the_run_before_it_begins() -> None:
    ramp = rb.schedules.Ramp(16, 4096, 10_000)
    with pytest.raises(rb.SettingError, match="exceeds the data set"):
        check_schedule(ramp, length=1000, examples=math.inf, largest=None)
    check_schedule(ramp, length=1000, examples=1000, largest=None)  # never gets there
    with pytest.raises(rb.SettingError, match="largest batch"):
        check_schedule(ramp, length=9000, examples=math.inf, largest=512)


WSD = rb.schedules.Rate((0, 500, 9_000, 10_000), (0.0, 1.0, 1.0, 0.0))


@pytest.mark.parametrize(
    ("last", "reached"), [(64, True), (256, True), (500, True), (501, False)]
)
def test_a_ramp_must_not_step_over_the_end_of_a_decay(last: int, reached: bool) -> None:
    """The last step of 501 begins at 9,499 of 10,000, at a factor above a half."""
    ramp = rb.schedules.Ramp(32, last, 5_000)
    if reached:
        check_decay_is_met(WSD, ramp, end=10_000, batch_size=32)
        return
    with pytest.raises(rb.SettingError, match="unfinished") as refused:
        check_decay_is_met(WSD, ramp, end=10_000, batch_size=32)
    assert "factor of 0.501" in refused.value.seen


def test_what_is_no_fault_of_the_ramp_is_left() -> None:
    constant = rb.schedules.Constant(4096)
    check_decay_is_met(WSD, constant, end=10_000, batch_size=32)
    late = rb.schedules.Ramp(32, 4096, 10**6)  # not there when the run ends
    check_decay_is_met(WSD, late, end=10_000, batch_size=32)
    ramp = rb.schedules.Ramp(32, 4096, 5_000)
    check_decay_is_met(WSD, ramp, end=10_000, batch_size=2048)  # as it was made for
    check_decay_is_met(WSD, ramp, end=10**6, batch_size=32)  # long over
    live = rb.schedules.FollowNoise(32, fraction=0.5)
    check_decay_is_met(WSD, live, end=10_000, batch_size=32)
