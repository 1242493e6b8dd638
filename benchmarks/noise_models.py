"""The models that noise is measured on: an MLP, a CNN, transformers, Hugging Face's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Case:
    """A model with a batch to train on.

    Attributes:
        model: A factory.
        inputs: Examples first.
        targets: Examples first.
        logits: ``(model, inputs) ->`` logits with the classes last.
    """

    model: Callable[[], nn.Module]
    inputs: Tensor
    targets: Tensor
    logits: Callable[[Any, Tensor], Tensor] = lambda model, x: model(x)

    def loss(self, model: Any, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross entropy."""
        return F.cross_entropy(self.logits(model, x).flatten(0, -2), y.flatten())


class Block(nn.Module):
    """Attention and a feed-forward layer, normalised before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (batch, length, width)."""
        b, t, d = x.shape
        q, k, v = (
            part.view(b, t, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).split(d, 2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A small GPT."""

    def __init__(
        self,
        vocabulary: int = 1024,
        width: int = 128,
        layers: int = 4,
        length: int = 128,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[Block(width, 4) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Shapes (batch, length) to (batch, length, vocabulary)."""
        # Positions with the examples' axis: what the peers need, too.
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        x = self.tokens(ids) + self.places(places)
        return self.head(self.norm(self.blocks(x)))


def mlp() -> nn.Module:
    """784-512-512-512-10."""
    return nn.Sequential(
        *(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()),
        *(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)),
    )


def cnn() -> nn.Module:
    """Four convolutions, 32 to 128 channels, and a classifier."""
    layers: list[nn.Module] = []
    before = 3
    for channels in (32, 64, 128, 128):
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        before = channels
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4, 10))


def cases() -> dict[str, Case]:
    """Every case there is here; Hugging Face's only where it is installed."""
    torch.manual_seed(0)
    ids = torch.randint(0, 1024, (16, 129))
    words = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    found = {
        "mlp": Case(mlp, torch.randn(128, 784), torch.randint(0, 10, (128,))),
        "cnn": Case(cnn, torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))),
        "transformer": Case(Transformer, *words),
        "transformer, tied": Case(lambda: Transformer(tied=True), *words),
    }
    try:
        import transformers
    except ImportError:
        return found
    sizes: dict[str, Any] = {"vocab_size": 1024, "use_cache": False}

    def gpt2() -> nn.Module:
        config = transformers.GPT2Config(
            **sizes,
            n_positions=128,
            n_embd=128,
            n_layer=4,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        return transformers.GPT2LMHeadModel(config)

    def llama() -> nn.Module:
        config = transformers.LlamaConfig(
            **sizes,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        return transformers.LlamaForCausalLM(config)

    def logits(model: Any, x: Tensor) -> Tensor:
        return model(input_ids=x).logits

    return found | {
        "HF GPT-2": Case(gpt2, *words, logits),
        "HF Llama": Case(llama, *words, logits),
    }
