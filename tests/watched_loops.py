"""Training loops and models for tests of the noise monitor."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rightbatch as rb


def still(model: nn.Module) -> torch.optim.Optimizer:
    """Weights do not move, so that there is one truth."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def draws(job: rb.Job, batch: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        index = torch.randint(job.length, (batch,), generator=generator)
        yield job.data[0][index], job.data[1][index]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Any,
    steps: int,
    accumulation: int = 1,
    reduction: str = "mean",
    clip: float | None = None,
) -> None:
    for x, y in itertools.islice(batches, steps):
        optimizer.zero_grad()
        parts = zip(x.chunk(accumulation), y.chunk(accumulation), strict=True)
        for one, target in parts:
            loss = (model(one) - target).square()
            value = loss.sum() if reduction == "sum" else loss.mean() / accumulation
            value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def watch(model: nn.Module, optimizer: Any = None, **settings: Any) -> rb.NoiseMonitor:
    """A monitor that measures every step."""
    return rb.NoiseMonitor(model, optimizer, math.inf, **settings)


def signal_and_noise(found: rb.NoiseScale) -> tuple[float, float]:
    return found.grad_norm_sq.value, found.trace.value


def perceptron(*, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(5, 8), nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


class Deep(nn.Module):
    """Blocks that may be checkpointed, and positions."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh()) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            if self.reentrant is None:
                x = x + block(x)
            else:
                x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return self.last(x)
