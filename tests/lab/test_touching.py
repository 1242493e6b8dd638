"""Formulas behind the claims on examples that touch, and the quick claims run."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import rightbatch as rb
from rightbatch.lab.chapters import claim_named
from rightbatch.lab.claim import run_claim
from rightbatch.lab.touching import contrastive_optimum, negatives
from rightbatch.lab.touching.sequence_model import NORMS, StepByStep


def gradient(z: torch.Tensor, single: float) -> float:
    """Of the made loss, pair by pair."""
    a, e = contrastive_optimum.POSITIVE, contrastive_optimum.PAIR
    values = [
        single * (x + y) + e * x * y for x, y in itertools.permutations(z.tolist(), 2)
    ]
    return 1 + a * float(z.mean()) + float(np.mean(values))


@pytest.mark.parametrize("single", [1.0, -1.0])
def test_the_made_loss_is_its_mean_over_pairs(single: float) -> None:
    model = nn.Linear(1, 1, bias=False)
    z = torch.randn(6, generator=torch.Generator().manual_seed(0))
    value = contrastive_optimum.pair_loss(single)(model, (z,))
    assert isinstance(value, torch.Tensor)
    value.backward()
    assert model.weight.grad is not None
    assert model.weight.grad.item() == pytest.approx(gradient(z, single), rel=1e-4)


@pytest.mark.parametrize("single", [1.0, -1.0])
def test_v1_and_v2_say_the_variance_of_the_made_loss(single: float) -> None:
    # 20,000 batches, tolerance 8 %: about five standard errors of these tails.
    v1, v2 = contrastive_optimum.closed_form(single)
    a, e, b = contrastive_optimum.POSITIVE, contrastive_optimum.PAIR, 8
    z = np.random.default_rng(0).standard_normal((20_000, b))
    pairs = (z.sum(1) ** 2 - (z**2).sum(1)) / (b * (b - 1))
    seen = np.var((a + 2 * single) * z.mean(1) + e * pairs)
    assert seen == pytest.approx(v1 / b + v2 / (b * (b - 1)), rel=0.08)


def test_the_best_critic_is_the_ratio_of_densities() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, negatives.WIDTH, generator=generator).double()
    queries, keys = negatives.critic(x, y)
    rest = 1 - negatives.CORRELATION**2
    away = (y[None] - negatives.CORRELATION * x[:, None]).square().sum(2)
    ratio = y.square().sum(1)[None] / 2 - away / (2 * rest)
    torch.testing.assert_close(queries @ keys.T, ratio)
    mean = torch.randn(2, 200_000, generator=generator).double()
    one = negatives.CORRELATION * mean[0] + math.sqrt(rest) * mean[1]
    log = one**2 / 2 - mean[1] ** 2 / 2 - math.log(rest) / 2
    information = negatives.WIDTH * float(log.mean())  # standard error 0.011
    assert information == pytest.approx(negatives.INFORMATION, abs=0.05)


@pytest.mark.parametrize("norm", NORMS)
def test_only_the_norm_sees_more_than_a_step(norm: str) -> None:
    model = StepByStep(norm, 3)
    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    model.norm = nn.LayerNorm(32) if norm == "LayerNorm" else nn.Identity()
    assert model(x).shape == (4, 5)
    assert not rb.coupling.leaks(model, x, time_axis=1)


@pytest.mark.parametrize("name", ["layer-norm-alone", "batchnorm-statistics"])
@pytest.mark.parametrize("seed", [0, 1])
def test_quick_claims_come_to_what_is_on_record(name: str, seed: int) -> None:
    outcome = run_claim(claim_named(name), seed=seed)
    assert outcome.as_recorded, str(outcome)
