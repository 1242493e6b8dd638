"""The batch grows eight times, and a cosine is stepped once for every update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb

CODE = "RB502"


RANDOM = torch.Generator().manual_seed(0)
INPUTS = torch.randn(4096, 5, generator=RANDOM)
TARGETS = INPUTS.sum(1, keepdim=True) + torch.randn(4096, 1, generator=RANDOM)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


RAMP = rb.schedules.Ramp(32, 256, 20_000)


def loop(by_examples: bool) -> dict[str, Any]:
    model = nn.Linear(5, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=1280)
    if by_examples:
        scheduler = rb.schedules.ByExamples(scheduler, batch_size=32)
    return {
        "model": model,
        "loss": loss,
        "batch": (INPUTS[:32], TARGETS[:32]),
        "optimizer": sgd,
        "schedule": RAMP,
        "scheduler": scheduler,
    }


def buggy() -> dict[str, Any]:
    return loop(by_examples=False)


def fixed() -> dict[str, Any]:
    return loop(by_examples=True)
