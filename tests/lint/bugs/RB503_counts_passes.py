"""The decay is as long as the loader, and is stepped once for four of its batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

import rightbatch as rb

CODE = "RB503"


RANDOM = torch.Generator().manual_seed(0)
INPUTS = torch.randn(1024, 5, generator=RANDOM)
TARGETS = INPUTS.sum(1, keepdim=True) + torch.randn(1024, 1, generator=RANDOM)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


EPOCHS, MICRO_BATCH, ACCUMULATION = 5, 16, 4
JOB = rb.Job(
    model=lambda: nn.Linear(5, 1),
    loss=loss,
    data=(INPUTS, TARGETS),
    optimizer=lambda params: torch.optim.SGD(params, lr=0.01),
    batch_size=MICRO_BATCH * ACCUMULATION,
    epochs=EPOCHS,
)


def run(total_steps: int) -> dict[str, Any]:
    sgd = torch.optim.SGD(nn.Linear(5, 1).parameters(), lr=0.01)
    scheduler = OneCycleLR(sgd, max_lr=0.01, total_steps=total_steps)
    return {"job": JOB, "micro_batch": MICRO_BATCH, "scheduler": scheduler}


def buggy() -> dict[str, Any]:
    return run(EPOCHS * len(INPUTS) // MICRO_BATCH)


def fixed() -> dict[str, Any]:
    return run(EPOCHS * len(INPUTS) // MICRO_BATCH // ACCUMULATION)
