"""A loader draws a rare class by chance; with strata it is in every batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rightbatch as rb

CODE = "RB601"


RANDOM = torch.Generator().manual_seed(0)
CLASSES = (torch.arange(4000) % 200 == 0).long()
DATA = TensorDataset(torch.randn(4000, 8, generator=RANDOM), CLASSES)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def weighted_loss(model: nn.Module, batch: Any) -> Tensor:
    (inputs, classes), weights = batch
    each = F.cross_entropy(model(inputs), classes, reduction="none")
    return (each * weights).mean()


def buggy() -> dict[str, Any]:
    loader = DataLoader(DATA, batch_size=32, shuffle=True)
    batch = next(iter(loader))
    return {"model": nn.Linear(8, 2), "loss": loss, "batch": batch, "loader": loader}


def fixed() -> dict[str, Any]:
    stream = rb.BatchStream(DATA, 32, order=rb.data.Strata(CLASSES))
    batch = next(iter(stream))
    return {
        "model": nn.Linear(8, 2),
        "loss": weighted_loss,
        "batch": batch,
        "loader": stream,
    }
