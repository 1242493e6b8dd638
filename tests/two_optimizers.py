"""A job of the usual pair: Muon for inner matrices, AdamW for the rest."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rightbatch as rb

VOCABULARY, LENGTH = 23, 7
MUON_LR, ADAM_LR = 0.02, 3e-3


class LM(nn.Module):
    """Predicts the next token, from one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 12)
        self.inner = nn.Linear(12, 12)
        self.head = nn.Linear(12, VOCABULARY, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for every place."""
        return self.head(self.inner(self.embed(x)).tanh())


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum over the tokens that count, and their number."""
    tokens, keep = batch
    logits = model(tokens[:, :-1]).flatten(0, 1)
    each = F.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
    return (each.view_as(keep) * keep).sum(), keep.sum()


def data(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens, and which of their successors count: three to seven of seven."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (count, LENGTH + 1), generator=generator)
    ends = torch.randint(3, LENGTH + 1, (count, 1), generator=generator)
    return tokens, (torch.arange(LENGTH) < ends).float()


def muon_and_adam(named_params: Any) -> list[torch.optim.Optimizer]:
    """By name and shape, as a user writes it."""
    named = dict(named_params)
    inner = [p for n, p in named.items() if n == "inner.weight"]
    rest = [p for n, p in named.items() if n != "inner.weight"]
    return [
        torch.optim.Muon(inner, lr=MUON_LR, weight_decay=0.1),
        torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.98)),
    ]


def two_optimizer_job(**more: Any) -> rb.Job:
    """Trained at batches of 16."""
    given: dict[str, Any] = {
        "model": LM,
        "loss": loss,
        "data": data(256),
        "optimizer": muon_and_adam,
        "batch_size": 16,
        "name": "pair",
    }
    return rb.Job(**{**given, **more})
