"""Rate and batch follow examples, Adam's second moment goes on counting steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb

CODE = "RB505"


RANDOM = torch.Generator().manual_seed(0)
INPUTS = torch.randn(4096, 5, generator=RANDOM)
TARGETS = INPUTS.sum(1, keepdim=True) + torch.randn(4096, 1, generator=RANDOM)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


RAMP = rb.schedules.Ramp(32, 512, 50_000)


def loop(moved: bool) -> dict[str, Any]:
    model = nn.Linear(5, 1)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=3000)
    scheduler = rb.schedules.ByExamples(cosine, batch_size=32)
    if moved:
        rb.schedules.Hyperparameters(adam, 32, scheduler=scheduler)
    return {
        "model": model,
        "loss": loss,
        "batch": (INPUTS[:32], TARGETS[:32]),
        "optimizer": adam,
        "schedule": RAMP,
        "scheduler": scheduler,
    }


def buggy() -> dict[str, Any]:
    return loop(moved=False)


def fixed() -> dict[str, Any]:
    return loop(moved=True)
