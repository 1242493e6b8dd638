"""The noise scale of a job in one call."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rightbatch as rb
from cases import regression_job
from reference import (
    true_noise,
)


def test_exact_is_the_definition_and_sampling_finds_it() -> None:
    job = regression_job(model=lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 1)))
    exact = rb.noise_scale(job, exact=True)
    model = job.make_model()
    signal, noise = true_noise(job, model)
    assert exact.grad_norm_sq.value == pytest.approx(signal, rel=1e-5)
    assert exact.trace.value == pytest.approx(noise, rel=1e-5)
    assert exact.noise_scale.low == exact.noise_scale.high
    assert "(inside)" in exact.source
    found = rb.noise_scale(job, precision=0.1, budget_s=30)
    assert found.noise_scale.relative <= 0.1
    low, high = found.noise_scale.low, found.noise_scale.high
    assert 0.9 * low <= noise / signal <= 1.1 * high


class Bent(nn.Module):
    """A parameter in an operation that is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bend = nn.Linear(5, 1), nn.Parameter(torch.tensor([0.3]))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) * torch.exp(self.bend) + 0.1 * torch.sin(self.bend)


def test_any_model_has_an_exact_way() -> None:
    job = regression_job(examples=40, model=Bent)
    found = rb.noise_scale(job, exact=True)
    signal, noise = true_noise(job, job.make_model())
    assert "(loop)" in found.source
    assert found.grad_norm_sq.value == pytest.approx(signal, rel=1e-4)
    assert found.trace.value == pytest.approx(noise, rel=1e-4)


def test_noise_at_other_weights() -> None:
    job = regression_job()
    model = job.make_model()
    with torch.no_grad():
        next(model.parameters()).fill_(1.0)
    found = rb.noise_scale(job, at=model, exact=True)
    signal, _ = true_noise(job, model)
    assert found.grad_norm_sq.value == pytest.approx(signal, rel=1e-5)
    with pytest.raises(rb.SettingError, match="not the job's model"):
        rb.noise_scale(job, at=nn.Linear(3, 1))
    with pytest.raises(rb.SettingError, match="no job"):
        rb.noise_scale("digits")  # type: ignore[arg-type]
    bad: list[dict[str, Any]] = [{"budget_s": 0.0}, {"precision": 0.0}]
    bad.append({"group_size": 0})
    for settings in bad:
        with pytest.raises(rb.SettingError):
            rb.noise_scale(job, **settings)


def test_contrastive_losses_are_refused_where_the_loss_is_known() -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        z = F.normalize(model(batch[0]), dim=1)
        return F.cross_entropy(z @ z.T, torch.arange(len(z)))

    job = regression_job(model=lambda: nn.Linear(5, 3), loss=loss)
    with pytest.raises(rb.JobError, match="group_size=B"):
        rb.noise_scale(job, budget_s=1)
    found = rb.noise_scale(job, budget_s=1, group_size=16)
    assert found.batch_size == 16
