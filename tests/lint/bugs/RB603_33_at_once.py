"""Thirty-three examples at once, where 32 fill the tiles of the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb
from cases import made_up
from made_runs import run_folder, with_a_step

CODE = "RB603"


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


RUN = run_folder(with_a_step(made_up(t0=5e-3, critical=64, jitter=0.005), 32, 1.3))


def buggy() -> dict[str, Any]:
    return {"job": job(33), "run": RUN}


def fixed() -> dict[str, Any]:
    return {"job": job(32), "run": RUN}
