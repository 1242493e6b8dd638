"""A rare class weighs 20 times as much, and a batch is made in pieces."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rightbatch as rb

CODE = "RB401"


RANDOM = torch.Generator().manual_seed(0)
INPUTS = torch.randn(512, 8, generator=RANDOM)
RARE = (torch.rand(512, generator=RANDOM) < 0.05).long()
WEIGHT = torch.tensor([1.0, 20.0])


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.CrossEntropyLoss(weight=WEIGHT)(model(batch[0]), batch[1])


def sum_and_weights(
    model: nn.Module, batch: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    inputs, classes = batch
    total = F.cross_entropy(model(inputs), classes, weight=WEIGHT, reduction="sum")
    return total, WEIGHT[classes].sum()


def job(loss: Any) -> rb.Job:
    return rb.Job(
        model=lambda: nn.Linear(8, 2),
        loss=loss,
        data=(INPUTS, RARE),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        batch_size=64,
    )


def buggy() -> dict[str, Any]:
    return {"job": job(mean_loss), "micro_batch": 4}


def fixed() -> dict[str, Any]:
    return {"job": job(sum_and_weights), "micro_batch": 4}
