"""A recurrent net that runs along the batch: batch_first was left out."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

CODE = "RB306"


class Forecast(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 16, batch_first=batch_first)
        self.out = nn.Linear(16, 1)

    def forward(self, series: Tensor) -> Tensor:
        return self.out(self.lstm(series)[0][:, -1])


def training(batch_first: bool) -> dict[str, Any]:
    return {
        "model": Forecast(batch_first),
        "loss": lambda model, batch: mse_loss(model(batch[0]), batch[1]),
        "batch": (torch.randn(16, 20, 5), torch.randn(16, 1)),
    }


def buggy() -> dict[str, Any]:
    return training(batch_first=False)


def fixed() -> dict[str, Any]:
    return training(batch_first=True)
