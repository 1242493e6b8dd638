"""What a reading says."""

import json
import math

import pytest
import torch
from torch import nn

import rightbatch as rb
from cases import regression_job
from rightbatch.core.json_io import from_plain, to_plain
from watched_loops import Deep, draws, perceptron, still, train, watch


def test_a_reading_is_a_record_and_a_sentence() -> None:
    job, model = regression_job(), Deep()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    monitor = rb.NoiseMonitor(model, optimizer, math.inf)
    empty = monitor.read()
    assert empty.verdict == "nothing measured yet"
    assert not empty.decided
    train(model, optimizer, draws(job, 16), 40)
    found = monitor.read(window=10**6)
    assert from_plain(rb.NoiseScale, json.loads(json.dumps(to_plain(found)))) == found
    assert str(found) == found.verdict
    assert all(math.isfinite(v) for v in found.log().values())
    # The half width falls with the root of the steps.
    wide = found.steps_needed(0.05) + found.steps
    assert wide == pytest.approx(4 * (found.steps_needed(0.1) + found.steps), rel=0.05)


def test_noise_of_a_batch_falls_to_zero_at_the_full_data() -> None:
    job, model = regression_job(examples=64), perceptron()
    monitor = watch(model, optimizer := still(model), population=64)
    train(model, optimizer, draws(job, 16), 5)
    found = monitor.read()
    assert found.gradient_noise(64).value == 0.0
    assert found.gradient_noise(1).value == found.trace.value
    with pytest.raises(ValueError, match="batch_size=65 is not"):
        found.gradient_noise(65)


def test_layers_add_up_and_ratios_do_not() -> None:
    job, model = regression_job(), Deep()
    monitor = watch(model, optimizer := still(model))
    train(model, optimizer, draws(job, 16), 60)
    found = monitor.read(window=10**6)
    layers = found.by_layer.values()
    signal = sum(one.grad_norm_sq.value for one in layers)
    noise = sum(one.trace.value for one in layers)
    assert noise / signal == pytest.approx(found.noise_scale.value, rel=1e-6)
    assert sum(one.share for one in layers) == pytest.approx(1.0)


def test_no_signal_is_infinity_and_never_a_large_number() -> None:
    # Gradients of pure noise: the target does not depend on the input.
    model = nn.Linear(5, 1, bias=False)
    nn.init.zeros_(model.weight)
    generator = torch.Generator().manual_seed(0)
    monitor = watch(model, optimizer := still(model))
    for _ in range(50):
        optimizer.zero_grad()
        x, y = (torch.randn(16, n, generator=generator) for n in (5, 1))
        (model(x) - y).square().mean().backward()
        optimizer.step()
    found = monitor.read(window=10_000)
    assert found.noise_scale.high == math.inf
    assert "at least" in found.verdict
    assert found.noise_scale.low > 16  # 50 steps of 16 tell it from one batch


def test_no_gradient_at_all_is_told() -> None:
    model = nn.Linear(5, 1)
    monitor = watch(model, optimizer := still(model))
    for _ in range(4):
        optimizer.zero_grad()
        (model(torch.randn(8, 5)) * 0).sum().backward()
        optimizer.step()
    found = monitor.read()
    assert found.skipped == 4
    assert (
        found.verdict
        == "nothing measured yet (4 steps left out; all gradients were zero)"
    )
    assert found.noise_scale.value == math.inf
