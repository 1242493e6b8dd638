"""A logistic regression in which few examples carry most of the gradient."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import rightbatch as rb


def rare_class(length: int = 20_000, seed: int = 0) -> tuple[Any, Any]:
    """A logistic regression with 1 % positives."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 6, generator=generator)
    score = x @ torch.tensor([1.5, -1.0, 0.5, 0.0, 0.0, 1.0]) - 6.3
    y = (torch.rand(length, generator=generator) < torch.sigmoid(score)).float()
    return torch.cat([x, torch.ones(length, 1)], 1), y


def gradients(x: Any, y: Any, weight: Any) -> Any:
    """Each example's own gradient, (examples, parameters)."""
    return (torch.sigmoid(x @ weight) - y)[:, None] * x


def losses_of(
    model: nn.Module, stream: rb.BatchStream
) -> Iterator[tuple[Tensor, rb.data.MicroBatch]]:
    """What is left of an epoch: the loss of each example, and the micro-batch."""
    for step in stream.steps():
        for micro in step:
            inputs, labels = micro.data
            losses = functional.binary_cross_entropy_with_logits(
                model(inputs)[:, 0], labels, reduction="none"
            )
            yield losses, micro
