"""A language model whose attention sees the words it is to predict."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

CODE = "RB307"


class Language(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.words = nn.Embedding(50, 16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(
            x + scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        )


def next_word(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def training(causal: bool) -> dict[str, Any]:
    text = torch.randint(50, (16, 25))
    return {
        "model": Language(causal),
        "loss": next_word,
        "batch": (text[:, :-1], text[:, 1:]),
    }


def buggy() -> dict[str, Any]:
    return training(causal=False)


def fixed() -> dict[str, Any]:
    return training(causal=True)
