"""The factor of a scaled loss is found where it is divided out."""

import itertools

import pytest
import torch
from torch import nn

import rightbatch as rb
from cases import regression_job
from watched_loops import draws, perceptron, watch

STEPS = 16


def reading(form: str, accumulation: int) -> rb.NoiseScale:
    model = perceptron()
    kind = torch.optim.Adam if "adam" in form else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=256.0, growth_interval=3, enabled="disabled" not in form
    )
    monitor = watch(model, optimizer)
    for x, y in itertools.islice(draws(regression_job(), 16), STEPS):
        optimizer.zero_grad()
        parts = zip(x.chunk(accumulation), y.chunk(accumulation), strict=True)
        for part, target in parts:
            loss = (model(part) - target).square().mean() / accumulation
            scaler.scale(loss).backward()
        if form == "clipped":
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        scaler.step(optimizer)
        scaler.update()
    return monitor.read(window=10**6)  # a warning would be an error


@pytest.mark.parametrize("form", ["sgd", "adam", "clipped", "disabled"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_torchs_scaler_need_not_be_given(form: str, accumulation: int) -> None:
    same = "disabled adam" if form == "adam" else "disabled"
    truth, found = (reading(f, accumulation) for f in (same, form))
    assert found.steps == truth.steps >= STEPS - 1
    assert found.trace.value == pytest.approx(truth.trace.value, rel=1e-5)
