"""Adam's and the sign's metrics against their definitions."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from cases import regression_job
from reference import (
    noise_by_pairs,
)
from rightbatch.noise.capture.group_norms import ParameterKey
from rightbatch.noise.statistics.optimizer_metric import (
    OptimizerMetrics,
    root_moments,
    sign_scale,
)
from rightbatch.noise.statistics.samples import Sample, with_metrics
from watched_loops import Deep, draws, train


def groups_of_gradients(k: int, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(k, n, generator=generator).double() * 0.3 + 0.1


def observed(
    rows: Tensor, parameter: nn.Parameter, moments: Any, size: int = 2
) -> OptimizerMetrics:
    metrics = OptimizerMetrics([parameter], moments, (size,) * len(rows))
    before = None
    for j, part in enumerate(rows):
        metrics.observe(ParameterKey(0), before, part.float(), j)
        before = part.float() if before is None else before + part.float()
    return metrics


def pairs_of(metrics: OptimizerMetrics) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    nothing = np.zeros(1)
    sample = Sample(sum(metrics.sizes), nothing, nothing)
    return with_metrics(sample, metrics, metrics.rows()).metrics


def test_adams_metrics_are_their_definitions() -> None:
    parameter = nn.Parameter(torch.zeros(40))
    moment = torch.rand(40) ** 4
    rows = groups_of_gradients(5, 40)
    metrics = observed(rows, parameter, {id(parameter): (moment, 0.5, 1e-3)})
    root = (moment.double() / 0.5).sqrt() + 1e-3
    floor = 0.1 * float(root.float().median())
    weights = {
        "adam": 1 / root,
        "adam_robust": 1 / root.clamp(min=floor),
        "adam_curvature": 1 / root.sqrt(),
    }
    pairs = pairs_of(metrics)
    for name, weight in weights.items():
        truth = noise_by_pairs(list(rows * weight), [2] * 5)
        got = tuple(float(v[0]) for v in pairs[name])
        np.testing.assert_allclose(got, truth, rtol=1e-4)


def test_silent_coordinates_swamp_the_plain_form_only() -> None:
    # One coordinate in a hundred has almost no second moment, and only noise.
    parameter = nn.Parameter(torch.zeros(100))
    moment = torch.full((100,), 0.01)
    moment[0] = 1e-14
    rows = torch.full((8, 100), 0.1).double() / 8
    generator = torch.Generator().manual_seed(0)
    rows += 0.005 * torch.randn(8, 100, generator=generator)
    metrics = observed(rows, parameter, {id(parameter): (moment, 1.0, 1e-8)})
    pairs = pairs_of(metrics)
    whole = {n: float(noise[0]) for n, (_, noise) in pairs.items()}
    assert whole["adam"] > 1e4 * whole["adam_robust"]


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.5])
def test_the_sign_based_scale_is_unbiased(ratio: float) -> None:
    # |G_i| / sigma_i = ratio everywhere: the truth is 1 / ratio^2. 800 batches of 64 in
    # 2,000 coordinates; within 7 % (4 standard errors at 0.05), where the published
    # form stays near B.
    generator = torch.Generator().manual_seed(0)
    n, batch, k = 2000, 64, 8
    sigma = torch.rand(n, generator=generator).double() + 0.5
    mean = sigma * ratio * torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)
    parameter = nn.Parameter(torch.zeros(n))
    gain = deviation = raw = 0.0
    for _ in range(800):
        noise = torch.randn(k, n, generator=generator).double()
        rows = (mean + sigma * noise * math.sqrt(k / batch)) / k
        metrics = observed(rows, parameter, {}, batch // k)
        both = metrics.rows()["sign"]
        gain, deviation = gain + float(both[0]), deviation + float(both[1])
        raw += float(rows.sum(0).abs().sum())
    found = sign_scale(gain, deviation, metrics.gain_batch)
    assert found == pytest.approx(1 / ratio**2, rel=0.07)
    published = (800 * float(sigma.sum()) / raw) ** 2
    assert published < 1.7 * batch
    assert sign_scale(-1.0, 1.0, 8) == math.inf


def test_metrics_are_measured_for_adam_and_name_what_dominates() -> None:
    job, model = regression_job(), Deep()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    monitor = rb.NoiseMonitor(model, optimizer, math.inf)
    train(model, optimizer, draws(job, 16), 60)
    found = monitor.read()
    assert set(found.metrics) == {"adam", "adam_robust", "adam_curvature", "sign"}
    for metric in found.metrics.values():
        assert metric.use
        assert all(
            name in dict(model.named_parameters()) for name in metric.dominated_by
        )
    assert "noise/scale" in monitor.log()
    assert root_moments([]) == {}


def test_complex_parameters_are_pairs_of_real_ones() -> None:
    # As torch's Adam has it: each part has a second moment of its own.
    whole = nn.Parameter(torch.zeros(20, dtype=torch.cfloat))
    pairs = nn.Parameter(torch.zeros(20, 2))
    moment, rows = torch.rand(20, 2), groups_of_gradients(5, 40).view(5, 20, 2)
    found = OptimizerMetrics(
        [whole], {id(whole): (torch.view_as_complex(moment), 0.5, 1e-3)}, (2,) * 5
    )
    before: Tensor | None = None
    for j, part in enumerate(torch.view_as_complex(rows).to(torch.cfloat)):
        found.observe(ParameterKey(0), before, part, j)
        before = part if before is None else before + part
    truth = observed(rows, pairs, {id(pairs): (moment, 0.5, 1e-3)})
    for name, (signal, noise) in pairs_of(truth).items():
        np.testing.assert_allclose(pairs_of(found)[name], (signal, noise), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.cfloat, torch.cdouble])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_complex_weights_are_trained_and_measured(
    dtype: torch.dtype, accumulation: int
) -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, dtype=dtype))
            self.last = nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            spectrum = torch.fft.rfft(x) * self.w
            return self.last(torch.fft.irfft(spectrum, n=5).to(x.dtype))

    model = Spectral()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    monitor = rb.NoiseMonitor(model, optimizer, math.inf)
    train(model, optimizer, draws(regression_job(), 16), 12, accumulation)
    found = monitor.read(window=10**6)
    assert found.steps >= 11
    assert "last" in found.by_layer
    assert math.isfinite(found.metrics["adam_curvature"].noise_scale.low)


def test_moments_in_another_form_than_adams_are_none() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    forms: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"exp_avg_sq": torch.ones(3)}, {"betas": (0.9, 0.99), "eps": 1e-8}),
        ({"exp_avg_sq": torch.ones(3), "step": 1}, {"betas": (0.9, 0.99, 0.9)}),
        ({"exp_avg_sq": torch.ones(2), "step": 1}, {"betas": (0.9, 0.99), "eps": 0.0}),
        ({"exp_avg_sq": None, "step": 1}, {"betas": (0.9, 0.99), "eps": 1e-8}),
        ({"exp_avg_sq": torch.ones(3), "step": 1}, {"betas": (0, 0), "eps": (None, 1)}),
    ]
    for state, group in forms:
        optimizer = torch.optim.SGD([{"params": [parameter], **group}])
        optimizer.state[parameter] = state
        assert root_moments([optimizer]) == {}
    amsgrad = torch.optim.Adam([parameter], amsgrad=True)
    for size in (2.0, 1.0):
        parameter.grad = torch.full((3,), size)
        amsgrad.step()
    (moment, _, _), state = root_moments([amsgrad])[id(parameter)], amsgrad.state
    assert torch.equal(moment, state[parameter]["max_exp_avg_sq"])
