"""Features are centred by the detached mean of the batch, behind a BatchNorm."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

CODE = "RB306"


class Centred(nn.Module):
    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(self.axis, keepdim=True).detach()


def training(axis: int) -> dict[str, Any]:
    return {
        "model": nn.Sequential(
            nn.Linear(10, 32), nn.BatchNorm1d(32), Centred(axis), nn.Linear(32, 3)
        ),
        "loss": lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        "batch": (torch.randn(32, 10), torch.randint(3, (32,))),
    }


def buggy() -> dict[str, Any]:
    return training(axis=0)


def fixed() -> dict[str, Any]:
    return training(axis=1)
