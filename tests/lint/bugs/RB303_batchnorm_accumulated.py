"""A batch of 64 is accumulated from 16 at a time, and BatchNorm sees only 16."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import rightbatch as rb

CODE = "RB303"


def training(norm: nn.Module) -> dict[str, Any]:
    return {
        "model": nn.Sequential(
            nn.Linear(10, 32), norm, nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3)
        ),
        "loss": lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        "batch": (torch.randn(64, 10), torch.randint(3, (64,))),
        "accumulation": 4,
    }


def buggy() -> dict[str, Any]:
    return training(nn.BatchNorm1d(32))


def fixed() -> dict[str, Any]:
    """Groups of 16 are what is meant, in whatever pieces."""
    return training(rb.coupling.GhostBatchNorm(32, group=16))
