"""A forecast by convolutions that are padded on both sides sees a step ahead."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

CODE = "RB307"


class Forecast(nn.Module):
    def __init__(self, padding: nn.Module) -> None:
        super().__init__()
        self.padding, self.convolution = padding, nn.Conv1d(4, 4, 3)

    def forward(self, series: Tensor) -> Tensor:
        return self.convolution(self.padding(series.transpose(1, 2))).transpose(1, 2)


def training(padding: nn.Module) -> dict[str, Any]:
    series = torch.randn(16, 21, 4)
    return {
        "model": Forecast(padding),
        "loss": lambda model, batch: mse_loss(model(batch[0]), batch[1]),
        "batch": (series[:, :-1], series[:, 1:]),
        "time_axis": 1,
    }


def buggy() -> dict[str, Any]:
    return training(nn.ConstantPad1d((1, 1), 0.0))


def fixed() -> dict[str, Any]:
    return training(nn.ConstantPad1d((2, 0), 0.0))
