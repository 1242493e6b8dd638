"""Features are gathered, but all_gather passes no gradient: DDP makes it 1/4."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.functional import cross_entropy, normalize

CODE = "RB309"


def detached(rows: Tensor) -> Tensor:
    every = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(every, rows.detach().contiguous())
    every[dist.get_rank()] = rows
    return torch.cat(every)


def attached(rows: Tensor) -> Tensor:
    return torch.cat(all_gather(rows.contiguous()))


def training(gather: Any) -> dict[str, Any]:
    def contrast(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, texts = (normalize(model(view), dim=-1) for view in batch)
        if dist.is_initialized():
            images, texts = gather(images), gather(texts)
        return cross_entropy(10 * images @ texts.T, torch.arange(len(images)))

    return {
        "model": nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 16)),
        "loss": contrast,
        "batch": (torch.randn(32, 10), torch.randn(32, 10)),
        "ranks": 4,
    }


def buggy() -> dict[str, Any]:
    return training(detached)


def fixed() -> dict[str, Any]:
    return training(attached)
