"""The shortest accumulator: plain SGD."""

from typing import Any

import torch
from torch import nn

import rightbatch as rb


def stepping(
    model: nn.Module,
    loss: Any,
    micro_batch: int | None = None,
    *,
    lr: float = 0.1,
    **more: Any,
) -> rb.Accumulator:
    """Makes updates of a model; with a rate of zero it only makes gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return rb.Accumulator(model, loss, optimizer, micro_batch, **more)
