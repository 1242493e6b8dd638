"""65 examples in batches of 16 leave one over, which BatchNorm refuses."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

CODE = "RB301"


def training(drop_last: bool) -> dict[str, Any]:
    x, y = torch.randn(65, 10), torch.randint(3, (65,))
    loader = DataLoader(
        TensorDataset(x, y), batch_size=16, shuffle=True, drop_last=drop_last
    )
    model = nn.Sequential(
        nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)
    )
    return {
        "model": model,
        "loss": lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        "batch": (x[:16], y[:16]),
        "loader": loader,
    }


def buggy() -> dict[str, Any]:
    return training(drop_last=False)


def fixed() -> dict[str, Any]:
    return training(drop_last=True)
