"""BatchNorm1d takes its statistics over all steps: it looks ahead in training only."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

CODE = "RB307"


class OverFeatures(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


def training(norm: nn.Module) -> dict[str, Any]:
    series = torch.randn(32, 4, 21)
    return {
        "model": nn.Sequential(nn.Conv1d(4, 8, 1), norm, nn.ReLU(), nn.Conv1d(8, 4, 1)),
        "loss": lambda model, batch: mse_loss(model(batch[0]), batch[1]),
        "batch": (series[:, :, :-1], series[:, :, 1:]),
        "time_axis": 2,
    }


def buggy() -> dict[str, Any]:
    return training(nn.BatchNorm1d(8))


def fixed() -> dict[str, Any]:
    return training(OverFeatures(8))
