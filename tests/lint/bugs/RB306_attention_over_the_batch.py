"""MultiheadAttention without batch_first: words attend to other examples."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

CODE = "RB306"


class Classifier(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=batch_first)
        self.out = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


def training(batch_first: bool) -> dict[str, Any]:
    return {
        "model": Classifier(batch_first),
        "loss": lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        "batch": (torch.randint(50, (16, 12)), torch.randint(3, (16,))),
    }


def buggy() -> dict[str, Any]:
    return training(batch_first=False)


def fixed() -> dict[str, Any]:
    return training(batch_first=True)
