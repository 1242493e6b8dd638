"""Four images are all that fits on the GPU, and BatchNorm has only them."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import rightbatch as rb

CODE = "RB302"


def job(norm: Any) -> rb.Job:
    return rb.Job(
        model=lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            norm(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        ),
        loss=lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        data=(torch.randn(64, 3, 16, 16), torch.arange(64) % 5),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.01),
        batch_size=4,
    )


def buggy() -> dict[str, Any]:
    return {"job": job(nn.BatchNorm2d)}


def fixed() -> dict[str, Any]:
    return {"job": job(lambda channels: nn.GroupNorm(4, channels))}
