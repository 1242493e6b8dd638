"""Schedules in one word, and other words refused."""

from __future__ import annotations

import pytest

import rightbatch as rb
from rightbatch.schedules.parse import parse_examples, parse_rate, parse_schedule
from rightbatch.schedules.schedule import Schedule

DECAY = rb.schedules.Rate.cosine(100_000, floor=0.02)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("constant:64", rb.schedules.Constant(64)),
        ("stages:0=64,50k=128", rb.schedules.Stages(((0, 64), (50_000, 128)))),
        ("ramp:32:512:3epochs", rb.schedules.Ramp(32, 512, 3000)),
        (
            "ramp:32:512:3e:geometric",
            rb.schedules.Ramp(32, 512, 3000, form="geometric"),
        ),
        ("anneal:32:512:1m", rb.schedules.Anneal(32, 512, 1_000_000)),
        ("smith:512", rb.schedules.InsteadOfDecay(64, DECAY, 512)),
        ("temperature", rb.schedules.AlongRate(64, DECAY)),
        ("noise:0.5:512", rb.schedules.FollowNoise(64, fraction=0.5, most=512)),
        ("noise", rb.schedules.FollowNoise(64, half_batch=40.0, least=64, most=1000)),
        (
            "noise::512:0.5",
            rb.schedules.FollowNoise(
                64, half_batch=40.0, least=64, most=512, calibration=0.5
            ),
        ),
        ("signal", rb.schedules.SignalToNoise(64, most=1000)),
    ],
)
def test_schedules_in_one_word(text: str, expected: Schedule) -> None:
    found = parse_schedule(text, batch=64, length=1000, rate=DECAY, half_batch=40.0)
    assert found == expected


Rate = rb.schedules.Rate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cosine:9epochs:0.1", Rate.cosine(9000, floor=0.1)),
        ("warmup:500+cosine:9epochs", Rate.cosine(9000, warmup=500)),
        ("warmup:0.1epochs+linear:2k:0.2", Rate.linear(2000, floor=0.2, warmup=100)),
        ("warmup:50+steps:0=1,1k=0.1", Rate.steps({0: 1, 1000: 0.1}, warmup=50)),
        ("warmup:2k", Rate((0, 2000), (0.0, 1.0))),
    ],
)
def test_rates_in_one_word(text: str, expected: Rate) -> None:
    assert parse_rate(text, 1000) == expected


@pytest.mark.parametrize(
    "text",
    [
        "warmup",
        "warmup:",
        "warmup:0+cosine:1k",
        "warmup:5+",
        "warmup:5+warmup:6",
        "cosine:1k+warmup:5",
        "warmup:2k+cosine:1k",
    ],
)
def test_other_warm_ups_are_refused(text: str) -> None:
    with pytest.raises(rb.SettingError):
        parse_rate(text, 1000)


@pytest.mark.parametrize(
    "text", ["", "ramp", "ramp:1:2", "ramp:a:b:c", "noise:x", "stages:5", "cubic:3"]
)
def test_other_words_are_refused_with_the_forms(text: str) -> None:
    with pytest.raises(rb.SettingError) as caught:
        parse_schedule(text, batch=64, length=1000, rate=DECAY)
    assert "ramp:32:512" in str(caught.value) or "of examples" in str(caught.value)
    with pytest.raises(rb.SettingError):
        parse_rate(text, 1000)
    with pytest.raises(rb.SettingError):
        parse_examples("many", 10)
