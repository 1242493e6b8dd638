"""The factor of a scaled loss is found where it is divided out, or told."""

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from cases import regression_job
from watched_loops import draws, perceptron, still, watch

STEPS = 16


def reading(form: str, accumulation: int = 1) -> tuple[Any, list[str]]:
    model = perceptron()
    kind = torch.optim.Adam if "adam" in form else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=256.0, growth_interval=3, enabled="disabled" not in form
    )
    monitor = watch(model, optimizer)
    factor = 512.0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for x, y in itertools.islice(draws(regression_job(), 16), STEPS):
            optimizer.zero_grad()
            for part, target in zip(
                x.chunk(accumulation), y.chunk(accumulation), strict=True
            ):
                loss = (model(part) - target).square().mean() / accumulation
                by_hand = loss * factor
                (by_hand if form == "by hand" else scaler.scale(loss)).backward()
            if form == "by hand":
                for p in model.parameters():
                    assert p.grad is not None
                    p.grad /= factor
                optimizer.step()
                continue
            if form == "clipped":
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
    return monitor.read(window=10**6), [str(w.message) for w in told]


@pytest.mark.parametrize("form", ["sgd", "adam", "clipped", "disabled"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_torchs_scaler_need_not_be_given(form: str, accumulation: int) -> None:
    same = "disabled adam" if form == "adam" else "disabled"
    truth, _ = reading(same, accumulation)
    found, told = reading(form, accumulation)
    assert found.steps == truth.steps >= STEPS - 1
    assert found.trace.value == pytest.approx(truth.trace.value, rel=1e-5)
    assert not told


def test_a_factor_divided_out_by_hand_is_told() -> None:
    _, told = reading("by hand")
    assert len(told) == 1
    assert "1 / 512 of what" in told[0]


@pytest.mark.parametrize("largest", [0.001, 1.0])
def test_clipping_is_no_factor(largest: float) -> None:
    model = perceptron()
    monitor = watch(model, optimizer := still(model))
    for x, y in itertools.islice(draws(regression_job(), 16), STEPS):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), largest)
        optimizer.step()  # a warning would be an error
    assert monitor.read().steps > 0
