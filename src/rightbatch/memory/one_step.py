"""Model and optimizer of a job, and one step of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rightbatch.job.job import PRECISIONS, Job
from rightbatch.training.gradient import Part, sum_gradients


@dataclass
class Parts:
    """What a step moves."""

    job: Job
    model: nn.Module
    optimizer: torch.optim.Optimizer

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return next(self.model.parameters()).device


def accumulate(
    job: Job,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    sizes: list[int],
) -> None:
    """Leave the mean gradient in ``.grad``."""
    optimizer.zero_grad(set_to_none=True)
    parts = (Part(b, n) for b, n in zip(batches, sizes, strict=True))
    _, counts = sum_gradients(
        model,
        job.loss,
        parts,
        device=next(model.parameters()).device,
        dtype=PRECISIONS[job.precision],
    )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.div_(sum(counts))
