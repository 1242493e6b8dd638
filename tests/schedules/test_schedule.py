"""Schedules against their formulas, their invariants, and what refuses to run."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb
from rightbatch.schedules.from_json import schedule_from
from rightbatch.schedules.schedule import Schedule

DECAY = rb.schedules.Rate.cosine(100_000, floor=0.02)
ALL: list[Schedule] = [
    rb.schedules.Constant(64),
    rb.schedules.Stages(((0, 64), (500, 96), (9_000, 32))),
    rb.schedules.Ramp(16, 256, 50_000),
    rb.schedules.Ramp(256, 16, 50_000, form="geometric"),
    rb.schedules.Anneal(32, 512, 80_000),
    rb.schedules.Anneal(32, 512, 80_000, form="logarithmic"),
    rb.schedules.InsteadOfDecay(64, DECAY, 512),
    rb.schedules.InsteadOfDecay(64, DECAY, 512, form="seesaw"),
    rb.schedules.AlongRate(512, DECAY),
    rb.schedules.AlongRate(8192, DECAY, keep="update-variance"),
    rb.schedules.FollowNoise(64, half_batch=45.5, most=1024),
    rb.schedules.FollowNoise(64, fraction=0.5),
    rb.schedules.SignalToNoise(64, most=4096),
]


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_every_schedule_goes_to_json_and_back(schedule: Schedule) -> None:
    plain = json.loads(json.dumps(schedule.to_plain(), allow_nan=False))
    assert schedule_from(plain) == schedule
    assert len(str(schedule)) < 150
    assert "\n" not in str(schedule)
    table = schedule.table(100_000)
    assert all(len(line) <= 80 or schedule.live for line in table.splitlines())


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


@pytest.mark.parametrize("schedule", [s for s in ALL if not s.live], ids=str)
@settings(max_examples=40, deadline=None)
@given(examples=st.integers(0, 200_000))
def test_every_schedule_is_a_function_of_examples_within_its_limits(
    schedule: Schedule, examples: int
) -> None:
    batch = schedule.batch_size(examples)
    assert 1 <= batch <= schedule.largest(math.inf)
    assert batch <= schedule.largest(examples + 1)


def test_the_logarithmic_form_is_the_annealing_law() -> None:
    """B proportional to log(k + k0), with k in batches of the first size."""
    schedule = rb.schedules.Anneal(10, 1000, 10**6, form="logarithmic")
    offset = schedule.offset
    for share in (0.001, 0.1, 0.5, 0.9):
        steps = share * 10**5
        law = 10 * math.log(steps + offset) / math.log(offset)
        assert schedule.batch_size(int(share * 10**6)) == pytest.approx(law, rel=0.06)
    end = math.log(10**5 + offset) / math.log(offset)
    assert end == pytest.approx(100, rel=1e-6)


def test_a_smooth_schedule_moves_in_steps_of_ten_percent() -> None:
    ramp = rb.schedules.Ramp(32, 320, 100_000, form="geometric")
    sizes = {ramp.batch_size(n) for n in range(0, 100_000, 50)}
    assert len(sizes) == pytest.approx(math.log(10) / math.log(1.1), abs=2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rb.schedules.Constant(0),
        lambda: rb.schedules.Constant(1.5),  # pyrefly: ignore
        lambda: rb.schedules.Stages(()),
        lambda: rb.schedules.Stages(((10, 64),)),
        lambda: rb.schedules.Stages(((0, 64), (0, 32))),
        lambda: rb.schedules.Stages(((0, 0),)),
        lambda: rb.schedules.Stages((64,)),  # pyrefly: ignore
        lambda: rb.schedules.Ramp(0, 10, 100),
        lambda: rb.schedules.Ramp(64, 128, 10),
        lambda: rb.schedules.Ramp(64, 128, 1000, form="cubic"),  # pyrefly: ignore
        lambda: rb.schedules.Anneal(64, 32, 1000, form="logarithmic"),
        lambda: rb.schedules.InsteadOfDecay(64, DECAY, 32),
        lambda: rb.schedules.InsteadOfDecay(64, DECAY, 128, form="both"),  # pyrefly: ignore
        lambda: rb.schedules.AlongRate(
            64, rb.schedules.Rate.cosine(1000)
        ),  # shrinks to nothing
        lambda: rb.schedules.AlongRate(64, DECAY, keep="update-variance"),
        lambda: rb.schedules.FollowNoise(64),
        lambda: rb.schedules.FollowNoise(64, fraction=0.5, half_batch=3.0),
        lambda: rb.schedules.FollowNoise(64, fraction=-1.0),
        lambda: rb.schedules.FollowNoise(64, fraction=0.5, most=32),
        lambda: rb.schedules.SignalToNoise(64, least=65),
        lambda: rb.schedules.Rate((0, 5), (1.0,)),
        lambda: rb.schedules.Rate((1, 5), (1.0, 0.5)),
        lambda: rb.schedules.Rate((0, 5), (1.0, math.nan)),
        lambda: rb.schedules.Rate((0, 5), (1.0, -0.5)),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(make: Any) -> None:
    with pytest.raises(rb.SettingError):
        make()
