"""The beta2 of runs at 512 sequences, at a batch of four."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb

CODE = "RB506"


RANDOM = torch.Generator().manual_seed(0)
INPUTS = torch.randn(1024, 5, generator=RANDOM)
TARGETS = INPUTS.sum(1, keepdim=True) + torch.randn(1024, 1, generator=RANDOM)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def job(beta2: float) -> rb.Job:
    return rb.Job(
        model=lambda: nn.Linear(5, 1),
        loss=loss,
        data=(INPUTS, TARGETS),
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3, betas=(0.9, beta2)),
        batch_size=4,
    )


def buggy() -> dict[str, Any]:
    return {"job": job(0.95)}


def fixed() -> dict[str, Any]:
    return {"job": job(0.999)}
