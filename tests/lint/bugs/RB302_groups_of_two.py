"""Ghost BatchNorm with groups of two, as the batch was once on each small GPU."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import rightbatch as rb

CODE = "RB302"


def training(group: int) -> dict[str, Any]:
    norm = rb.coupling.GhostBatchNorm(32, group=group)
    return {
        "model": nn.Sequential(nn.Linear(10, 32), norm, nn.ReLU(), nn.Linear(32, 3)),
        "loss": lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        "batch": (torch.randn(64, 10), torch.randint(3, (64,))),
    }


def buggy() -> dict[str, Any]:
    return training(group=2)


def fixed() -> dict[str, Any]:
    return training(group=16)
