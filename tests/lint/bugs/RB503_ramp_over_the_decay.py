"""The last batches of a ramp are longer than the decay of the rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb

CODE = "RB503"


RANDOM = torch.Generator().manual_seed(0)
INPUTS = torch.randn(4096, 5, generator=RANDOM)
TARGETS = INPUTS.sum(1, keepdim=True) + torch.randn(4096, 1, generator=RANDOM)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


DECAY = {"long": (0, 14_000, 20_000), "short": (0, 19_000, 20_000)}


def run(decay: str) -> dict[str, Any]:
    job = rb.Job(
        model=lambda: nn.Linear(5, 1),
        loss=loss,
        data=(INPUTS, TARGETS),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.01),
        batch_size=64,
        examples=20_000,
        rate=rb.schedules.Rate(DECAY[decay], (1.0, 1.0, 0.0)),
    )
    return {"job": job, "schedule": rb.schedules.Ramp(64, 1024, 15_000)}


def buggy() -> dict[str, Any]:
    return run("short")


def fixed() -> dict[str, Any]:
    return run("long")
