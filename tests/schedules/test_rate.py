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
