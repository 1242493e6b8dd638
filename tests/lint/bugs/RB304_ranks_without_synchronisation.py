"""DDP on four GPUs: each normalises over its own eight examples."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

CODE = "RB304"


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)
    )


def training(model: nn.Module) -> dict[str, Any]:
    return {
        "model": model,
        "loss": lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        "batch": (torch.randn(32, 2, 8), torch.randint(3, (32,))),
        "ranks": 4,
    }


def buggy() -> dict[str, Any]:
    return training(network())


def fixed() -> dict[str, Any]:
    return training(nn.SyncBatchNorm.convert_sync_batchnorm(network()))
