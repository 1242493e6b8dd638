"""The recipe of one process, started on eight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb

CODE = "RB501"


RANDOM = torch.Generator().manual_seed(0)
INPUTS = torch.randn(1024, 5, generator=RANDOM)
TARGETS = INPUTS.sum(1, keepdim=True) + torch.randn(1024, 1, generator=RANDOM)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def job(batch_size: int, lr: float) -> rb.Job:
    return rb.Job(
        model=lambda: nn.Linear(5, 1),
        loss=loss,
        data=(INPUTS, TARGETS),
        optimizer=lambda params: torch.optim.SGD(params, lr=lr, momentum=0.9),
        batch_size=batch_size,
    )


def buggy() -> dict[str, Any]:
    return {"job": job(32, 0.01), "micro_batch": 32, "ranks": 8}


def fixed() -> dict[str, Any]:
    return {"job": job(256, 0.08), "micro_batch": 32, "ranks": 8}
