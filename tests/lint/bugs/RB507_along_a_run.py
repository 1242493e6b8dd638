"""Along a whole run no batch's gradient was as short as the limit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb
from made_runs import run_folder

CODE = "RB507"


RANDOM = torch.Generator().manual_seed(0)
INPUTS = torch.randn(1024, 5, generator=RANDOM)
TARGETS = INPUTS.sum(1, keepdim=True) + torch.randn(1024, 1, generator=RANDOM)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def checked(clip_norm: float) -> dict[str, Any]:
    job = rb.Job(
        model=lambda: nn.Linear(5, 1),
        loss=loss,
        data=(INPUTS, TARGETS),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.01),
        batch_size=64,
        clip_norm=clip_norm,
    )
    return {"job": job, "run": run_folder(critical=128.0, t0=2e-2, today=64)}


def buggy() -> dict[str, Any]:
    return checked(1.0)  # norms of sqrt(1 + 128 / 64) along the run


def fixed() -> dict[str, Any]:
    return checked(4.0)
