"""A model of sequences in which only the normalisation sees more than one step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

CHANNELS = 32
NORMS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm": lambda: nn.BatchNorm1d(CHANNELS),
    "GroupNorm": lambda: nn.GroupNorm(4, CHANNELS),
    "LayerNorm": lambda: nn.LayerNorm(CHANNELS),
}


class StepByStep(nn.Module):
    """Inputs (examples, steps, features) to one number a step (examples, steps)."""

    def __init__(self, norm: str, features: int) -> None:
        super().__init__()
        self.inside = nn.Linear(features, CHANNELS)
        self.norm = NORMS[norm]()
        self.outside = nn.Linear(CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        """One number for every step."""
        hidden = self.inside(x)
        if isinstance(self.norm, nn.LayerNorm):
            normal = self.norm(hidden)
        else:
            normal = self.norm(hidden.transpose(1, 2)).transpose(1, 2)
        return self.outside(torch.relu(normal)).squeeze(-1)
