"""An average of the weights is updated once a step, and the batch grows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import rightbatch as rb

CODE = "RB504"


RANDOM = torch.Generator().manual_seed(0)
INPUTS = torch.randn(4096, 5, generator=RANDOM)
TARGETS = INPUTS.sum(1, keepdim=True) + torch.randn(4096, 1, generator=RANDOM)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


RAMP = rb.schedules.Ramp(32, 256, 50_000)
SEEN = 0  # examples, counted by the loop


def by_examples(average: Tensor, weight: Tensor, count: Any) -> Tensor:
    decay = 0.999 ** (RAMP.batch_size(SEEN) / 32)
    return torch.lerp(weight, average, decay)


def loop(averaging: dict[str, Any]) -> dict[str, Any]:
    model = nn.Linear(5, 1)
    return {
        "model": model,
        "loss": loss,
        "batch": (INPUTS[:32], TARGETS[:32]),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "schedule": RAMP,
        "averaged": AveragedModel(model, **averaging),
    }


def buggy() -> dict[str, Any]:
    return loop({"multi_avg_fn": get_ema_multi_avg_fn(0.999)})


def fixed() -> dict[str, Any]:
    return loop({"avg_fn": by_examples})
