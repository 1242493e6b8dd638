"""Schedules to JSON and back, and held against a run."""

from __future__ import annotations

import math

import pytest

import rightbatch as rb
from rightbatch.schedules.from_json import check_schedule, schedule_from


def test_a_schedule_is_held_against_the_run_before_it_begins() -> None:
    ramp = rb.schedules.Ramp(16, 4096, 10_000)
    with pytest.raises(rb.SettingError, match="exceeds the data set"):
        check_schedule(ramp, length=1000, examples=math.inf, largest=None)
    check_schedule(ramp, length=1000, examples=1000, largest=None)  # never gets there
    with pytest.raises(rb.SettingError, match="largest batch"):
        check_schedule(ramp, length=9000, examples=math.inf, largest=512)


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"kind": "None"},
        {"kind": "Ramp", "first": 1},
        {"kind": "Ramp", "first": "a", "last": 2, "examples": 9},
        {"kind": "Constant", "batch": 8, "more": 1},
    ],
)
def test_a_damaged_schedule_is_refused(plain: dict[str, object]) -> None:
    with pytest.raises(rb.RunFolderError):
        schedule_from(plain)
