"""Learning-rate schedules by examples."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import rightbatch as rb


def test_rates_from_torch_schedulers_are_what_they_are() -> None:
    def make(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)

    rate = rb.schedules.Rate.from_scheduler(make, steps=100, batch_size=32)
    for step in (0, 1, 30, 99):
        truth = 0.5 * (1 + math.cos(math.pi * step / 100))
        assert rate(32 * step) == pytest.approx(truth, abs=1e-6)
    cosine = rb.schedules.Rate.cosine(3200)
    assert cosine(1600) == pytest.approx(0.5, abs=1e-4)
    warm = rb.schedules.Rate.cosine(1000, warmup=100)
    assert warm(50) == pytest.approx(0.5)
    assert warm(100) == pytest.approx(1.0)


Rate = rb.schedules.Rate
ALL = [
    Rate.cosine(1000, floor=0.1, warmup=100),
    Rate.linear(1000, warmup=10),
    Rate.steps({0: 1.0, 400: 0.5, 900: 0.1}),
    Rate.steps({0: 1.0, 400: 0.5, 900: 0.1}, warmup=50),
]


@pytest.mark.parametrize("rate", ALL, ids=str)
@pytest.mark.parametrize("factor", [0.01, 0.37, 1.0, 2.5, 64.0])
def test_a_stretched_rate_has_the_same_shape(rate: Any, factor: float) -> None:
    stretched = rate.stretched(factor)
    assert stretched.examples[-1] == rate.examples[-1] * factor
    for seen in range(3, 1103, 7):
        assert stretched(seen * factor) == pytest.approx(rate(seen), abs=1e-9)


def test_a_warm_up_rises_straight_and_then_the_rate_is_its_own() -> None:
    stairs = Rate.steps({0: 1.0, 400: 0.5, 900: 0.1}, warmup=50)
    assert [stairs(n) for n in (0, 25, 50, 399, 400, 899, 900, 5000)] == pytest.approx(
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.5, 0.1, 0.1]
    )
    line = Rate.linear(1000, floor=0.2, warmup=200)
    assert [line(n) for n in (100, 200, 600, 1000)] == pytest.approx(
        [0.5, 1.0, 0.6, 0.2]
    )
    assert "1 (at 200)" in str(line)


def test_a_warm_up_that_leaves_no_decay_is_refused() -> None:
    for make in (Rate.cosine, Rate.linear):
        with pytest.raises(rb.SettingError, match="as long as the whole"):
            make(100, warmup=100)
    for factor in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(rb.SettingError, match="positive factor"):
            Rate.linear(100).stretched(factor)
