"""Run under torchrun by coupling/test_rank_leaks.py: what leaks between ranks."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import rightbatch as rb

ROWS, WIDTH = 4, 5


class GlobalMean(nn.Module):
    """Subtracts the mean over all ranks."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        total = x.sum(0)
        dist.all_reduce(total)
        return x - total / (len(x) * dist.get_world_size())


class OfRank(nn.Module):
    """Adds what differs by rank."""

    def forward(self, x: Tensor) -> Tensor:
        return x + dist.get_rank()


class Dropped(nn.Module):
    """Leaves layers out by Python's random numbers, which differ by rank."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(6):
            x = x + self.layer(x) if random.random() < 0.5 else x
        return x


class Broken(nn.Module):
    """Makes NaN of what rank 1 has."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (dist.get_rank() != 1) - x / (dist.get_rank() != 1)


def stacked(*parts: nn.Module) -> nn.Sequential:
    """The same weights on every rank, but for a BatchNorm's running mean."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *parts, nn.Dropout(0.2))


def drifted() -> nn.Sequential:
    model = stacked(nn.BatchNorm1d(WIDTH))
    for name, buffer in model.named_buffers():
        if name.endswith("mean"):
            buffer.fill_(float(dist.get_rank()))
    return model


CASES = {
    "alone": lambda: stacked(nn.LayerNorm(WIDTH)),
    "norm of a rank": lambda: stacked(nn.BatchNorm1d(WIDTH)),
    "global mean": lambda: stacked(GlobalMean()),
    "of rank": lambda: stacked(OfRank()),
    "drifted": drifted,
    "dropped": lambda: stacked(Dropped()),
    "broken": lambda: stacked(Broken()),
    "wrapped": lambda: DistributedDataParallel(drifted()),
}


def found(make: Any) -> dict[str, Any]:
    model = make()
    before = [t.clone() for t in (*model.parameters(), *model.buffers())]
    torch.manual_seed(10 + dist.get_rank())
    batch = torch.randn(ROWS + dist.get_rank() % 2, WIDTH)
    random.seed(dist.get_rank())
    try:
        leaks = rb.coupling.leaks(model, batch, ranks=True)
    except rb.SettingError as error:
        return {"leaks": {"refused": [error.what]}, "strong": True, "kept": True}
    kept = zip(before, (*model.parameters(), *model.buffers()), strict=True)
    return {
        "leaks": {leak.across: [leak.module, *leak.modes] for leak in leaks},
        "strong": all(leak.strength > 0 for leak in leaks),
        "kept": all(torch.equal(a, b) for a, b in kept),
    }


if __name__ == "__main__":
    dist.init_process_group("gloo")
    results = {name: found(make) for name, make in CASES.items()}
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, results)
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(gathered))
    dist.destroy_process_group()
