"""Small optimizers, of torch's classes and of classes that are known by name alone."""

from __future__ import annotations

from typing import Any

import torch


def sgd(lr: float = 0.1, **numbers: Any) -> torch.optim.SGD:
    """Of three parameters."""
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=lr, **numbers)


def of_class(name: str, **numbers: Any) -> torch.optim.Optimizer:
    """Of a class of this name, with these numbers in its param group."""
    kind: Any = type(name, (torch.optim.Optimizer,), {})
    return kind([torch.nn.Parameter(torch.zeros(2, 2))], {"lr": 0.1, **numbers})


def of_torch(name: str, **numbers: Any) -> torch.optim.Optimizer:
    """Of torch's class of this name."""
    kind: Any = getattr(torch.optim, name)
    return kind([torch.nn.Parameter(torch.zeros(2, 2))], lr=0.1, **numbers)
