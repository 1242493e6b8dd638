"""A limit for gradients that was copied from another job clips every one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb

CODE = "RB507"


RANDOM = torch.Generator().manual_seed(0)
INPUTS = torch.randn(1024, 5, generator=RANDOM)
TARGETS = INPUTS.sum(1, keepdim=True) + torch.randn(1024, 1, generator=RANDOM)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def job(clip_norm: float) -> rb.Job:
    return rb.Job(
        model=lambda: nn.Linear(5, 1),
        loss=loss,
        data=(INPUTS, TARGETS),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.01),
        batch_size=32,
        clip_norm=clip_norm,
    )


def buggy() -> dict[str, Any]:
    return {"job": job(0.01)}


def fixed() -> dict[str, Any]:
    return {"job": job(20.0)}
