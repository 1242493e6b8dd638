"""A tagger averages over a piece's tokens, and pieces are accumulated."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rightbatch as rb

CODE = "RB401"


LENGTHS = torch.randint(1, 33, (512,), generator=torch.Generator().manual_seed(0))
WORDS = torch.randint(0, 50, (512, 32), generator=torch.Generator().manual_seed(1))


def token_losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
    words, lengths = batch
    wanted = words % 7
    each = F.cross_entropy(model(words).transpose(1, 2), wanted, reduction="none")
    kept = torch.arange(32) < lengths[:, None]
    return (each * kept).sum(), kept.sum()


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    total, count = token_losses(model, batch)
    return total / count


def job(loss: Any) -> rb.Job:
    return rb.Job(
        model=lambda: nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 7)),
        loss=loss,
        data=(WORDS, LENGTHS),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        batch_size=64,
    )


def buggy() -> dict[str, Any]:
    return {"job": job(mean_loss), "micro_batch": 4, "accumulation": 16}


def fixed() -> dict[str, Any]:
    return {"job": job(token_losses), "micro_batch": 4, "accumulation": 16}
