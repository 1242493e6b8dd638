"""What may race: every batch that fits at rates far to both sides, today's first."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from cases import made_up
from rightbatch.measure.measurements import Measurements
from rightbatch.plan.laws import Laws, laws_of
from rightbatch.plan.options import options_within
from rightbatch.schedules.scaling import apply_scaling
from rightbatch.tuning.candidates import race_settings
from rightbatch.tuning.lane import Setting

MEMORY = 10_000_000 + 33 * 100_000  # bytes, for 32 examples at once


def settings_of(
    found: Measurements, limit: float = 1e12
) -> tuple[Laws, tuple[Setting, ...]]:
    laws = laws_of(found)
    options = options_within(laws, found.job.examples, limit)
    return laws, race_settings(found, laws, options)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_today_comes_first_as_it_is(optimizer: str) -> None:
    _, settings = settings_of(made_up(optimizer=optimizer))
    today = settings[0]
    assert (today.batch_size, today.lr) == (64, 0.1)
    assert today.lr_factor == today.scaling.lr == 1.0
    pairs = [(s.batch_size, s.lr) for s in settings]
    assert len(set(pairs)) == len(pairs)


def test_every_batch_at_every_rate() -> None:
    """Well beyond 16 x either way, two to an octave, at each batch that fits."""
    laws, settings = settings_of(made_up())
    options = options_within(laws, 100_000, 1e12)
    assert {s.batch_size for s in settings} == {o.batch_size for o in options}
    for batch_size in (1, 64, 512):
        rates = sorted(s.lr for s in settings if s.batch_size == batch_size)
        assert rates[0] <= 0.1 / 64
        assert rates[-1] >= 0.1 * 64
        steps = [b / a for a, b in pairwise(rates)]
        assert steps == pytest.approx([math.sqrt(2)] * len(steps))


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_what_is_set_up_is_the_rate_that_is_told(optimizer: str) -> None:
    _, settings = settings_of(made_up(optimizer=optimizer))
    for setting in settings[::29]:
        weight = torch.nn.Parameter(torch.zeros(3))
        made = getattr(torch.optim, optimizer)([weight], lr=0.1)
        apply_scaling(made, setting.scaling)
        trained = made.param_groups[0]["lr"] * setting.lr_factor
        assert trained == pytest.approx(setting.lr)


def test_steps_are_those_of_the_split_that_fits() -> None:
    laws, settings = settings_of(made_up(t0=0.1, t1=1e-4), MEMORY)
    for setting in settings[1:]:
        pieces = setting.batch_size // setting.micro_batch
        assert setting.batch_size == pieces * setting.micro_batch
        assert setting.step_s == laws.time.step_seconds(setting.micro_batch, pieces)
        if setting.batch_size != 64:
            assert setting.micro_batch <= 32
    assert max(s.batch_size for s in settings) > 64


def test_today_races_though_it_would_not_fit() -> None:
    found = made_up(today=48, sizes=(1, 2, 4, 8, 16, 32))
    tight = 10_000_000 + 3 * 100_000
    laws, settings = settings_of(found, tight)
    options = options_within(laws, found.job.examples, tight)
    assert settings[0].batch_size == 48
    assert {s.batch_size for s in settings} >= {o.batch_size for o in options}


def test_a_small_data_set_ends_the_batches() -> None:
    found = made_up()
    small = replace(found, job=replace(found.job, examples=100))
    _, settings = settings_of(small)
    assert max(s.batch_size for s in settings) == 64
