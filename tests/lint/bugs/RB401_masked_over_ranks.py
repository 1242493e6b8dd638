"""Fifteen of a hundred targets count (-100 elsewhere); DDP averages ranks' means."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CODE = "RB401"


RANDOM = torch.Generator().manual_seed(0)
WORDS = torch.randint(0, 50, (256, 24), generator=RANDOM)
MASKED = torch.rand(256, 24, generator=RANDOM) < 0.15
TARGETS = WORDS.masked_fill(~MASKED, -100)


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    words, targets = batch
    return F.cross_entropy(model(words).flatten(0, 1), targets.flatten())


def sum_and_count(
    model: nn.Module, batch: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    words, targets = batch
    logits = model(words).flatten(0, 1)
    total = F.cross_entropy(logits, targets.flatten(), reduction="sum")
    return total, (targets != -100).sum()


def loop(loss: Any) -> dict[str, Any]:
    """What a loop holds: its model, its loss and a batch of all four ranks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 50))
    return {"model": model, "loss": loss, "batch": (WORDS[:16], TARGETS[:16])}


def buggy() -> dict[str, Any]:
    return {**loop(mean_loss), "ranks": 4}


def fixed() -> dict[str, Any]:
    return {**loop(sum_and_count), "ranks": 4}
