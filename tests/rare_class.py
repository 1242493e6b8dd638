"""A logistic regression in which few examples carry most of the gradient."""

from typing import Any

import torch


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
