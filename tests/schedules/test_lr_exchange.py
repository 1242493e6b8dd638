"""Batch for learning rate: what is said to stay constant stays."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rightbatch as rb

DECAY = rb.schedules.Rate.cosine(100_000, floor=0.02)


@given(st.integers(0, 120_000))
def test_smith_has_the_temperature_of_the_decay(examples: int) -> None:
    """lr / B at every example what the decay makes of it, also beyond the limit."""
    aim = rb.schedules.InsteadOfDecay(64, DECAY, 512).aim(examples)
    assert aim.rate / aim.batch == pytest.approx(DECAY(examples) / 64, rel=1e-9)
    if DECAY(examples) > 64 / 512:
        assert aim.rate == pytest.approx(1.0, rel=0.01)  # whole examples


@given(st.integers(0, 120_000))
def test_seesaw_keeps_lr_over_the_root_of_the_batch(examples: int) -> None:
    aim = rb.schedules.InsteadOfDecay(64, DECAY, 512, form="seesaw").aim(examples)
    expected = DECAY(examples) / math.sqrt(64)
    assert aim.rate / math.sqrt(aim.batch) == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 120_000))
def test_along_a_rate_the_batch_shrinks_and_one_quantity_stays(examples: int) -> None:
    """Per update: variance lr^2 / B. Growing the batch as some texts say breaks it."""
    factor = DECAY(examples)
    temperature = rb.schedules.AlongRate(100_000, DECAY).aim(examples)
    assert temperature.rate / temperature.batch == pytest.approx(1e-5, rel=1e-3)
    variance = rb.schedules.AlongRate(10**7, DECAY, keep="update-variance").aim(
        examples
    )
    assert variance.rate**2 / variance.batch == pytest.approx(1e-7, rel=1e-3)
    assert variance.batch <= 10**7
    backwards = 10**7 / factor**2  # "b_k = b_0 d^(2k)" read with d > 1
    if factor < 0.5:
        assert factor**2 / backwards < 0.1 * 1e-7
