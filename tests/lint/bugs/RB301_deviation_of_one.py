"""Returns scaled by their deviation in the batch: NaN for the one that is left over."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CODE = "RB301"


def scaled_by_batch(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    target = (batch[1] - batch[1].mean()) / (batch[1].std() + 1e-6)
    return (model(batch[0]) - target).square().mean()


def scaled_before(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def training(loss: Any) -> dict[str, Any]:
    x, y = torch.randn(97, 10), torch.randn(97, 1)
    return {
        "model": nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1)),
        "loss": loss,
        "batch": (x[:32], y[:32]),
        "loader": DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True),
    }


def buggy() -> dict[str, Any]:
    return training(scaled_by_batch)


def fixed() -> dict[str, Any]:
    return training(scaled_before)
