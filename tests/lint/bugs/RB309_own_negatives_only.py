"""DDP on four GPUs under InfoNCE: each rank finds its negatives in its own part."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

import rightbatch as rb

CODE = "RB309"


def of_this_rank(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, texts = (normalize(model(view), dim=-1) for view in batch)
    return cross_entropy(10 * images @ texts.T, torch.arange(len(images)))


def of_all_ranks(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, texts = (normalize(model(view), dim=-1) for view in batch)
    return rb.coupling.info_nce(images, texts, scale=10.0)


def training(loss: Any) -> dict[str, Any]:
    return {
        "model": nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 16)),
        "loss": loss,
        "batch": (torch.randn(32, 10), torch.randn(32, 10)),
        "ranks": 4,
    }


def buggy() -> dict[str, Any]:
    return training(of_this_rank)


def fixed() -> dict[str, Any]:
    return training(of_all_ranks)
