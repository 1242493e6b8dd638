"""At 64 examples the machine has long been at work, and 16 are critical."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb
from made_runs import run_folder

CODE = "RB605"


RANDOM = torch.Generator().manual_seed(0)
INPUTS = torch.randn(1024, 5, generator=RANDOM)
TARGETS = INPUTS.sum(1, keepdim=True) + torch.randn(1024, 1, generator=RANDOM)


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


RUN = run_folder(t0=1e-3, t1=5e-4, critical=16.0, today=64)


def buggy() -> dict[str, Any]:
    return {"job": job(64), "run": RUN}


def fixed() -> dict[str, Any]:
    return {"job": job(16), "run": RUN}
