"""So many ranks that a step needs more examples than there are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CODE = "RB602"


RANDOM = torch.Generator().manual_seed(0)
INPUTS = torch.randn(400, 5, generator=RANDOM)
TARGETS = INPUTS.sum(1, keepdim=True) + torch.randn(400, 1, generator=RANDOM)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def loop(ranks: int) -> dict[str, Any]:
    loader = DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=64)
    return {
        "model": nn.Linear(5, 1),
        "loss": loss,
        "batch": next(iter(loader)),
        "loader": loader,
        "micro_batch": 64,
        "ranks": ranks,
    }


def buggy() -> dict[str, Any]:
    return loop(ranks=8)


def fixed() -> dict[str, Any]:
    return loop(ranks=4)
