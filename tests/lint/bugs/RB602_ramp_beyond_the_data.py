"""A ramp ends at a batch that the data set does not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb

CODE = "RB602"


RANDOM = torch.Generator().manual_seed(0)
INPUTS = torch.randn(1000, 5, generator=RANDOM)
TARGETS = INPUTS.sum(1, keepdim=True) + torch.randn(1000, 1, generator=RANDOM)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


JOB = rb.Job(
    model=lambda: nn.Linear(5, 1),
    loss=loss,
    data=(INPUTS, TARGETS),
    optimizer=lambda params: torch.optim.SGD(params, lr=0.01),
    batch_size=32,
    epochs=30,
)


def buggy() -> dict[str, Any]:
    return {"job": JOB, "schedule": rb.schedules.Ramp(32, 2048, 20_000)}


def fixed() -> dict[str, Any]:
    return {"job": JOB, "schedule": rb.schedules.Ramp(32, 512, 20_000)}
