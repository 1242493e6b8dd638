"""The noise of each stratum, measured while training."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import rightbatch as rb
from rare_class import gradients, losses_of, rare_class
from rightbatch.data.order.neyman import StratumMeter


def test_the_meter_measures_each_strata_s_noise() -> None:
    """Against every example's own gradient at the same weights: within 12 %."""
    x, y = rare_class()
    model = torch.nn.Linear(7, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, 0, 0, 0, 0, 0.2, -4.0]]))
    own = gradients(x, y, model.weight.detach()[0])
    truth = [float(own[y == c].var(0).sum()) ** 0.5 for c in (0.0, 1.0)]
    strata = rb.data.Strata(y, "neyman", multiple=2)
    meter = StratumMeter(model, strata, overhead=math.inf)
    squares: list[list[float]] = []
    for losses, micro in losses_of(model, rb.BatchStream((x, y), 64, order=strata)):
        meter(losses, micro.groups)
        squares.append([std**2 for std in meter.stds if std is not None])
    means = np.mean([both for both in squares if len(both) == 2], axis=0)
    assert np.sqrt(means) == pytest.approx(truth, rel=0.12)


def two_strata(spread: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A parameter, losses of two examples of each stratum, and the strata.

    The variance of their gradients is ``spread ** 2 / 2``.
    """
    weight = torch.ones(1, requires_grad=True)
    losses = weight * torch.tensor([0.0, spread, 0.0, spread])
    return weight, losses, torch.tensor([0, 0, 1, 1])


def test_the_meter_measures_at_once_then_seldom_and_forgets() -> None:
    weight, losses, groups = two_strata(2.0)
    seldom = StratumMeter([weight], rb.data.Strata([0, 0, 1, 1], "neyman"), 1e-9)
    for _ in range(20):
        seldom(losses, groups)
    assert seldom.measured == 4  # from the third call on: two rounds
    meter = StratumMeter([weight], rb.data.Strata([0, 0, 1, 1], "neyman"), math.inf)
    for _ in range(20):
        meter(losses, groups)
    assert meter.stds == pytest.approx([2**0.5] * 2)
    for _ in range(200):
        meter(10 * losses, groups)
    assert meter.stds == pytest.approx([10 * 2**0.5] * 2, rel=0.01)


def test_the_meter_keeps_to_its_overhead_and_feeds_the_strata() -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.001
        return now[0]

    x, y = rare_class()
    model = torch.nn.Linear(7, 1)
    strata = rb.data.Strata(y, "neyman", multiple=2)
    meter = StratumMeter(model, strata, overhead=0.1, clock=clock)
    for losses, micro in losses_of(model, rb.BatchStream((x, y), 64, order=strata)):
        now[0] += 0.003
        meter(losses, micro.groups)
    # A measurement takes 1 ms, a step 4 to 5: one in 2 to 3 steps is 10 %.
    assert 0.05 < meter.measured * 0.001 / now[0] < 0.12
    assert strata.version > 1


def test_a_meter_says_what_it_cannot_measure_by() -> None:
    stream: Any = rb.BatchStream((torch.ones(2),), 1)
    with pytest.raises(rb.SettingError, match="for strata"):
        StratumMeter([], stream)
    weight, losses, groups = two_strata(1.0)
    meter = StratumMeter([weight], rb.data.Strata([0, 0, 1, 1], "neyman"), math.inf)
    losses.sum().backward()
    with pytest.raises(rb.SettingError, match="before the backward pass"):
        for _ in range(4):
            meter(losses.square(), groups)
    with pytest.raises(rb.SettingError, match="one loss for each example"):
        meter(losses.mean(), groups)


def test_a_meter_leaves_out_what_is_not_finite() -> None:
    y = torch.tensor([0] * 90 + [1] * 10)
    strata = rb.data.Strata(y, "neyman")
    assert strata.counts_at(20).tolist() == [18, 2]  # two can be measured
    weight = torch.ones(1, requires_grad=True)
    meter = StratumMeter([weight], strata, math.inf)
    groups = torch.tensor([0, 0, 1, 1])
    x = torch.tensor([1.0, 2.0, 3.0, 7.0])
    for call in range(20):
        scale = math.inf if call == 9 else 1.0
        meter(weight * x * scale, groups)
    assert meter.stds == pytest.approx([0.5**0.5, 8**0.5])
