"""A fixed random projection that is drawn from the rank: each trains another model."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

CODE = "RB308"


class Projection(nn.Module):
    def __init__(self, by_rank: bool) -> None:
        super().__init__()
        self.by_rank = by_rank

    def forward(self, x: Tensor) -> Tensor:
        rank = dist.get_rank() if self.by_rank and dist.is_initialized() else 0
        generator = torch.Generator().manual_seed(rank)
        return x @ torch.randn(10, 16, generator=generator)


def training(by_rank: bool) -> dict[str, Any]:
    return {
        "model": nn.Sequential(Projection(by_rank), nn.Linear(16, 3)),
        "loss": lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        "batch": (torch.randn(32, 10), torch.randint(3, (32,))),
        "ranks": 2,
    }


def buggy() -> dict[str, Any]:
    return training(by_rank=True)


def fixed() -> dict[str, Any]:
    return training(by_rank=False)
