"""Each question has four answers: its copies are negatives of its own answers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

import rightbatch as rb

CODE = "RB310"


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(1000, 32)
        self.out = nn.Linear(32, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return normalize(self.out(self.words(tokens)), dim=-1)


def contrast(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    questions, answers = (model(tokens) for tokens in batch)
    return cross_entropy(questions @ answers.T / 0.1, torch.arange(len(questions)))


def training(distinct: bool) -> dict[str, Any]:
    questions = torch.randint(1000, (100, 12)).repeat_interleave(4, dim=0)
    data = questions, torch.randint(1000, (400, 12))
    order: Any = rb.data.Distinct(torch.arange(400) // 4) if distinct else "shuffled"
    job = rb.Job(
        model=Towers,
        loss=contrast,
        data=data,
        optimizer=lambda params: torch.optim.Adam(params, lr=1e-3),
        batch_size=32,
    )
    return {"job": job, "loader": rb.BatchStream(data, batch_size=32, order=order)}


def buggy() -> dict[str, Any]:
    return training(distinct=False)


def fixed() -> dict[str, Any]:
    return training(distinct=True)
