"""A published recipe accumulates 16 times; the smaller machine does not."""

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


JOB = rb.Job(
    model=lambda: nn.Linear(5, 1),
    loss=loss,
    data=(INPUTS, TARGETS),
    optimizer=lambda params: torch.optim.AdamW(params, lr=3e-3),
    batch_size=512,
)


def buggy() -> dict[str, Any]:
    return {"job": JOB, "micro_batch": 32, "accumulation": 1}


def fixed() -> dict[str, Any]:
    return {"job": JOB, "micro_batch": 32, "accumulation": 16}
