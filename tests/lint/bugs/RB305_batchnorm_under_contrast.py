"""An encoder with BatchNorm under a loss that compares the examples of a batch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

CODE = "RB305"


def contrast(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    first, second = (normalize(model(view), dim=-1) for view in batch)
    return cross_entropy(first @ second.T / 0.1, torch.arange(len(first)))


def training(norm: nn.Module) -> dict[str, Any]:
    x = torch.randn(64, 10)
    return {
        "model": nn.Sequential(nn.Linear(10, 32), norm, nn.ReLU(), nn.Linear(32, 16)),
        "loss": contrast,
        "batch": (x + 0.1 * torch.randn(64, 10), x + 0.1 * torch.randn(64, 10)),
    }


def buggy() -> dict[str, Any]:
    return training(nn.BatchNorm1d(32))


def fixed() -> dict[str, Any]:
    return training(nn.LayerNorm(32))
