"""A batch of 3,072 where 64 are critical."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb
from made_runs import run_folder

CODE = "RB606"


RANDOM = torch.Generator().manual_seed(0)
INPUTS = torch.randn(4096, 5, generator=RANDOM)
TARGETS = INPUTS.sum(1, keepdim=True) + torch.randn(4096, 1, generator=RANDOM)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def job(batch_size: int) -> rb.Job:
    return rb.Job(
        model=lambda: nn.Linear(5, 1),
        loss=loss,
        data=(INPUTS, TARGETS),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.01),
        batch_size=batch_size,
    )


RUN = run_folder(t0=2e-2, t1=2e-4, critical=64.0, today=64)


def buggy() -> dict[str, Any]:
    return {"job": job(3072), "run": RUN}


def fixed() -> dict[str, Any]:
    return {"job": job(128), "run": RUN}
