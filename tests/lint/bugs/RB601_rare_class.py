"""One example in 200 is of the class that matters, and batches hold 32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rightbatch as rb

CODE = "RB601"


RANDOM = torch.Generator().manual_seed(0)
INPUTS = torch.randn(4000, 8, generator=RANDOM)
FRAUD = (torch.arange(4000) % 200 == 0).long()


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def job(batch_size: int) -> rb.Job:
    return rb.Job(
        model=lambda: nn.Linear(8, 2),
        loss=loss,
        data=(INPUTS, FRAUD),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        batch_size=batch_size,
    )


def buggy() -> dict[str, Any]:
    return {"job": job(32)}


def fixed() -> dict[str, Any]:
    return {"job": job(256)}
