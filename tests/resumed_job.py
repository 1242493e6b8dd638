"""A job with everything a checkpoint must keep: dropout, Adam, augmentation, BatchNorm.

Read by the command line in tests/test_resume.py and benchmarks/resume.py.
"""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import rightbatch as rb
from rightbatch.job.built_in.digits import load_digits


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Digits with noise drawn from all three generators for every example."""

    def __init__(self) -> None:
        self.pixels, self.classes, *_ = load_digits()

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(64) * 0.05 + random.random() * 0.1 + np.random.rand() * 0.1
        return self.pixels[index] + noise, self.classes[index]


def make_model() -> nn.Module:
    """A small network with dropout and running statistics."""
    return nn.Sequential(
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(64, 10),
    )


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy."""
    return F.cross_entropy(model(batch[0]), batch[1])


def plain_model() -> nn.Module:
    """Without anything that depends on how a batch is split, or on ranks."""
    return nn.Sequential(
        nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 10)
    )


job = rb.Job(
    model=make_model,
    loss=loss,
    data=Augmented(),
    optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3),
    batch_size=32,
    name="resumed",
)
plain = rb.Job(
    model=plain_model,
    loss=loss,
    data=Augmented(),
    optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3),
    batch_size=32,
    name="resumed",
)
