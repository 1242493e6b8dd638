"""A contrastive batch of 64, accumulated from 16 at a time: 15 negatives, not 63."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import rightbatch as rb

CODE = "RB309"


def contrast(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    first, second = (normalize(model(view), dim=-1) for view in batch)
    return rb.coupling.info_nce(first, second, scale=10.0)


def training(accumulation: int) -> dict[str, Any]:
    return {
        "model": nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 16)),
        "loss": contrast,
        "batch": (torch.randn(64, 10), torch.randn(64, 10)),
        "accumulation": accumulation,
    }


def buggy() -> dict[str, Any]:
    return training(accumulation=4)


def fixed() -> dict[str, Any]:
    """The loop makes the whole batch at once, by `rb.coupling.cached_step`."""
    return training(accumulation=1)
