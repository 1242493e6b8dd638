"""Inputs scaled by the largest value of the whole batch, and not of each example."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

CODE = "RB306"


class Scaled(nn.Module):
    def __init__(self, of_each: bool) -> None:
        super().__init__()
        self.of_each = of_each

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.abs().amax(1, keepdim=True) if self.of_each else x.abs().max())


def training(of_each: bool) -> dict[str, Any]:
    return {
        "model": nn.Sequential(Scaled(of_each), nn.Linear(10, 3)),
        "loss": lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        "batch": (torch.randn(16, 10), torch.randint(3, (16,))),
    }


def buggy() -> dict[str, Any]:
    return training(of_each=False)


def fixed() -> dict[str, Any]:
    return training(of_each=True)
