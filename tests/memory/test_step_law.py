"""The traced law is the allocator's own peak, and what cannot be traced is measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rightbatch as rb
from memory_jobs import MIB, Clipping, Mlp, classify, job_of, law_of, real_peak


@pytest.mark.parametrize(
    ("kind", "changes", "accumulation"),
    [
        ("mlp", {}, 1),
        ("mlp", {}, 3),
        ("tagger", {}, 1),
        ("mlp", {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}, 1),
        ("mlp", {"optimizer": lambda p: torch.optim.AdamW(p, foreach=True)}, 1),
        ("mlp", {"optimizer": lambda p: torch.optim.AdamW(p, fused=True)}, 1),
        ("mlp", {"optimizer": lambda p: Clipping(p, lr=1e-3)}, 1),
        ("tagger", {"precision": "bfloat16"}, 1),
        ("mlp", {"model": lambda: Mlp(saved=False)}, 1),
        ("mlp", {"model": Mlp()}, 1),
        ("mlp", {"loss": lambda m, b: (classify(m, b) * len(b[0]), len(b[0]))}, 2),
    ],
)
def test_the_law_is_the_allocators_peak(
    kind: str, changes: dict[str, Any], accumulation: int
) -> None:
    """Within 0.5 % at every batch; with checkpointing 1 % (a few small blocks).

    Under autocast a kernel takes some fixed 8 KiB for itself.
    """
    scratch = 16 * 1024 if "precision" in changes else 0
    job = job_of(kind, **changes)
    law = law_of(job, accumulation)
    assert law.method == "traced at 2, 8, 32 examples"
    for size in (1, 3, 16, 200):
        real = real_peak(job, size, accumulation)
        assert law.peak(size) == pytest.approx(real, rel=0.01, abs=scratch)
        if changes.get("model") is None or isinstance(changes["model"], nn.Module):
            assert law.peak(size) == pytest.approx(real, rel=0.005, abs=scratch)


def test_examples_that_meet_make_a_square() -> None:
    """Contrastive logits are of every pair: affine in B would be far too low."""

    def contrast(model: nn.Module, batch: Any) -> Tensor:
        z = model(batch[0])
        return F.cross_entropy(z @ z.T, torch.arange(len(z)))

    job = job_of(loss=contrast)
    law = law_of(job)
    assert law.binding(2000).square > 0
    assert law.peak(2000) == pytest.approx(real_peak(job, 2000), rel=0.005)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(40, 32, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x.unsqueeze(1).expand(-1, 6, -1))[0][:, -1])


@pytest.mark.parametrize("kind", ["recurrent", "a part of the batch"])
def test_what_is_no_square_is_not_called_one(kind: str) -> None:
    """Workspaces that grow in steps, and 32 examples of any batch: within 10 %."""
    job = job_of(model=Recurrent)
    if kind != "recurrent":
        job = job_of(loss=lambda m, b: classify(m, (b[0][:32], b[1][:32])))
    law = law_of(job)
    assert law.peak(1500) == pytest.approx(real_peak(job, 1500), rel=0.1)


def test_what_looks_into_its_tensors_is_traced_on_small_real_steps() -> None:
    def looks(model: nn.Module, batch: Any) -> Tensor:
        loss = classify(model, batch)
        return loss if loss.item() < 1e9 else loss * 2

    job = job_of(loss=looks)
    law = law_of(job)
    assert "run for it" in law.method
    assert law.peak(300) == pytest.approx(real_peak(job, 300), rel=0.005)


def test_a_compiled_model_is_measured_on_real_steps() -> None:
    torch.compile(nn.Identity(), backend="eager")(torch.ones(1))  # loaded for children
    job = job_of(model=lambda: torch.compile(Mlp(), backend="eager"))
    law = law_of(job)
    assert "real steps of 8, 16, 64, 128" in law.method
    assert "compiled" in law.method
    assert law.peak(16) == pytest.approx(real_peak(job, 16), rel=0.02)


def test_a_loss_that_needs_more_examples_is_traced_at_more() -> None:
    def topk(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).topk(10, dim=0).values.mean()

    law = law_of(job_of(loss=topk))
    assert law.method == "traced at 16, 64, 128 examples"


def test_a_step_that_runs_at_no_size_is_refused() -> None:
    def never(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).topk(1000, dim=0).values.mean()

    with pytest.raises(rb.JobError, match="runs at no size from 2 to 128") as caught:
        rb.largest_batch(job_of(loss=never), 64 * MIB)
    assert "selected index k out of range" in str(caught.value)
