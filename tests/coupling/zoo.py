"""Small models whose examples touch each other in known ways, and clean ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

ROWS, STEPS, WIDTH, TOKENS = 8, 12, 6, 20
BOTH, TRAIN = ("train", "eval"), ("train",)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, a batch for it, and what is true of them.

    Attributes:
        name: What it does.
        make: Of a model with its weights.
        batch: Of a batch.
        leaks: Modes of every leak, by kind and module.
        options: More arguments of `leaks`.
        per_example: Whether the model is called with one tensor and returns rows.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[], Any]
    leaks: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def mechanism(self) -> str:
        """What leaks, in a word or two: the part before the comma."""
        return self.name.split(",")[0]


class Apply(nn.Module):
    """A module around a function of (module, input)."""

    def __init__(self, f: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.f = f
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.f(self, *inputs, **named)


class Queue(nn.Module):
    """Similarity to a queue of earlier outputs, filled before or after use."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first, self.linear = first, nn.Linear(WIDTH, WIDTH)
        self.register_buffer("queue", torch.randn(2 * ROWS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y, old = self.linear(x), self.queue
        new = torch.cat([y.detach(), old])[: len(old)]
        self.queue = new
        return y @ (new if self.first else old).T


class Experts(nn.Module):
    """Every example to one of two experts, which take a number of them, or all."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.gate = capacity, nn.Linear(WIDTH, 2)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        choice, out = self.gate(x).argmax(1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            taken = (choice == number).nonzero()[: self.capacity, 0]
            if len(taken):
                out[taken] = expert(x[taken])
        return out


class FrozenNorm(nn.Module):
    """BatchNorm that stays in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


class Attention(nn.Module):
    """One head of self-attention with a mask of choice, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.project = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.attention = Apply(lambda _, x, mask: _attend(x, mask))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(tokens)
        return self.project(x + self.attention(x, mask))


def _attend(x: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def layers(*parts: nn.Module) -> Callable[[], nn.Module]:
    """Between a linear layer and another, made with fresh weights."""

    def make() -> nn.Module:
        for part in itertools.chain(*(p.modules() for p in parts)):
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
        return nn.Sequential(
            nn.Linear(WIDTH, WIDTH), *parts, nn.ReLU(), nn.Linear(WIDTH, 3)
        )

    return make


def rows() -> Tensor:
    return torch.randn(ROWS, WIDTH)


def steps() -> Tensor:
    return torch.randn(ROWS, STEPS, WIDTH)


def channels() -> Tensor:
    return torch.randn(ROWS, WIDTH, STEPS)


def images() -> Tensor:
    return torch.randn(ROWS, 3, 6, 6)


def tokens() -> Tensor:
    return torch.randint(TOKENS, (ROWS, STEPS))


def labelled() -> tuple[Tensor, Tensor]:
    return rows(), torch.randint(3, (ROWS,))


def padded() -> dict[str, Tensor]:
    lengths = torch.randint(3, STEPS + 1, (ROWS,))
    lengths[0] = STEPS
    mask = torch.arange(STEPS) < lengths[:, None]
    return {"tokens": tokens() * mask, "mask": mask}


def documents() -> Tensor:
    return torch.tensor([0] * 4 + [1] * 5 + [2] * 3).expand(ROWS, STEPS)


def block_mask(number: Tensor) -> Tensor:
    causal = torch.ones(STEPS, STEPS).tril().bool()
    return causal & (number[:, :, None] == number[:, None, :])


CAUSAL = torch.ones(STEPS, STEPS).tril().bool()


def ghost(self: nn.Module, x: Tensor) -> Tensor:
    if not self.training:
        return x
    parts = [(p - p.mean(0)) / (p.std(0) + 1e-3) for p in x.split(ROWS // 2)]
    return torch.cat(parts)


def mixup(self: nn.Module, x: Tensor) -> Tensor:
    return 0.7 * x + 0.3 * x[torch.randperm(len(x))] if self.training else x


def keep_largest(_: nn.Module, x: Tensor) -> Tensor:
    kept = x.norm(dim=1).topk(len(x) // 2).indices
    return torch.zeros_like(x).index_copy(0, kept, x[kept])


def quantised(_: nn.Module, x: Tensor) -> Tensor:
    scale = x.abs().max() / 127
    return (x / scale).round() * scale


def whitened(_: nn.Module, x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    cov = centred.T @ centred / len(x) + 0.1 * torch.eye(x.shape[1])
    return centred @ torch.linalg.inv(torch.linalg.cholesky(cov)).T


def functional_norm(self: nn.Module, x: Tensor) -> Tensor:
    mean, var = torch.zeros(WIDTH), torch.ones(WIDTH)
    return F.batch_norm(x, mean, var, training=self.training)


def encode(self: Any, x: Tensor) -> Tensor:
    return self.out(self.attention(x, x, x, need_weights=False)[0])


def packed_gru(self: Any, x: Tensor, lengths: Tensor) -> Tensor:
    given = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    out = self.rnn(given)[0]
    return pad_packed_sequence(out, batch_first=True, total_length=STEPS)[0]


def unpadded(self: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    out = torch.zeros(*tokens.shape, 3)
    out[mask] = self.net(self.embed(tokens[mask]))
    return out


def masked_encoder(self: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    return self.layer(self.embed(tokens), src_key_padding_mask=~mask)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def token_sum(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    logits = model(batch["tokens"], CAUSAL).flatten(0, 1)
    each = F.cross_entropy(logits, batch["tokens"].flatten() % WIDTH, reduction="none")
    return (each * batch["mask"].flatten()).sum(), batch["mask"].sum()


def ignoring_mean(model: nn.Module, batch: Any) -> Tensor:
    labels = (batch["tokens"] % WIDTH).masked_fill(~batch["mask"], -100)
    logits = model(batch["tokens"], CAUSAL)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def probabilities(model: nn.Module, batch: Any) -> Tensor:
    return F.binary_cross_entropy(torch.sigmoid(model(batch[0])), batch[1])


def infonce(model: nn.Module, batch: Any) -> Tensor:
    logits = model(batch[0]) @ model(batch[1]).T
    return F.cross_entropy(logits, torch.arange(len(logits)))


def ranking(model: nn.Module, batch: Any) -> Tensor:
    score = model(batch[0])[:, 0]
    return F.softplus(score[:, None] - score).mean()


def advantages(model: nn.Module, batch: Any) -> Tensor:
    reward = batch[0].sum(1)
    advantage = (reward - reward.mean()) / (reward.std() + 1e-6)
    taken = model(batch[0]).log_softmax(1).gather(1, batch[1][:, None])[:, 0]
    return -advantage.detach() * taken


def weighted(model: nn.Module, batch: Any) -> Tensor:
    each = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    weight = each.detach().exp()
    return (each * weight / weight.max()).sum()


def plain(f: Callable[..., Any]) -> Callable[[], nn.Module]:
    return layers(Apply(f))


def examples(module: str, modes: tuple[str, ...] = BOTH) -> dict[Any, Any]:
    return {("examples", module): modes}


def over_time(module: str, modes: tuple[str, ...] = BOTH) -> dict[Any, Any]:
    return {("time", module): modes}


def eval_norm() -> nn.Module:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
    model[1].eval()
    return model


def zero_head() -> nn.Module:
    head = nn.Linear(WIDTH, 3)
    nn.init.zeros_(head.weight)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), head)


def attention(batch_first: bool) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        heads = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first, dropout=0.1)
        return Apply(encode, attention=heads, out=nn.Linear(WIDTH, 3))

    return make


def by(f: Callable[..., Any], **parts: Callable[[], nn.Module]) -> Any:
    """A maker of `Apply` with fresh parts."""
    return lambda: Apply(f, **{name: part() for name, part in parts.items()})


def linear() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH)


def causal_conv(norm: Callable[[], nn.Module] | None = None) -> Any:
    def make() -> nn.Module:
        pad = nn.ConstantPad1d((2, 0), 0.0)
        parts = [pad, nn.Conv1d(WIDTH, WIDTH, 3), *([norm()] if norm else [])]
        return nn.Sequential(*parts, nn.ReLU(), nn.Dropout(0.2))

    return make


def same_conv() -> nn.Module:
    parts = [nn.Conv1d(WIDTH, WIDTH, 3, padding=1) for _ in range(3)]
    return nn.Sequential(*parts)


def embedder(*parts: Callable[[], nn.Module]) -> Any:
    return lambda: nn.Sequential(
        nn.Embedding(TOKENS, WIDTH), *(part() for part in parts)
    )


def encoder_layer(batch_first: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=batch_first)


TIME, CHANNELS = {"time_axis": 1}, {"time_axis": 2}

LEAKING = [
    Case(
        name="BatchNorm",
        make=layers(nn.BatchNorm1d(WIDTH)),
        batch=rows,
        leaks=examples("1", TRAIN),
    ),
    Case(
        name="BatchNorm, of images",
        make=lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        batch=images,
        leaks=examples("1", TRAIN),
    ),
    Case(
        name="BatchNorm, zero last layer",
        make=zero_head,
        batch=rows,
        leaks=examples("1", TRAIN),
    ),
    Case(
        name="BatchNorm, tokens folded",
        make=embedder(
            lambda: Apply(
                lambda self, x: self.norm(x.flatten(0, 1)).view_as(x),
                norm=nn.BatchNorm1d(WIDTH),
            )
        ),
        batch=tokens,
        leaks=examples("1.norm", TRAIN),
    ),
    Case(
        name="BatchNorm, no running statistics",
        make=layers(nn.BatchNorm1d(WIDTH, track_running_stats=False)),
        batch=rows,
        leaks=examples("1"),
    ),
    Case(
        name="BatchNorm, F.batch_norm",
        make=plain(functional_norm),
        batch=rows,
        leaks=examples("1", TRAIN),
    ),
    Case(
        name="BatchNorm, over time",
        make=causal_conv(lambda: nn.BatchNorm1d(WIDTH)),
        batch=channels,
        leaks=examples("2", TRAIN) | over_time("2", TRAIN),
        options=CHANNELS,
    ),
    Case(
        name="batch statistics by hand",
        make=by(
            lambda self, x: self.b(
                (self.a(x) - self.a(x).mean(0)) / (self.a(x).std(0) + 1e-3)
            ),
            a=linear,
            b=linear,
        ),
        batch=rows,
        leaks=examples(""),
    ),
    Case(
        name="detached batch mean",
        make=plain(lambda _, x: x - x.mean(0).detach()),
        batch=rows,
        leaks=examples("1"),
    ),
    Case(
        name="ghost statistics",
        make=plain(ghost),
        batch=rows,
        leaks=examples("1", TRAIN),
    ),
    Case(
        name="whitening by the batch",
        make=plain(whitened),
        batch=rows,
        leaks=examples("1"),
    ),
    Case(
        name="softmax over the batch",
        make=layers(nn.Softmax(0)),
        batch=rows,
        leaks=examples("1"),
    ),
    Case(
        name="attention over the batch",
        make=attention(batch_first=False),
        batch=steps,
        leaks=examples("attention"),
    ),
    Case(
        name="attention over the batch, encoder layer",
        make=embedder(lambda: encoder_layer(batch_first=False)),
        batch=tokens,
        leaks=examples("1.self_attn"),
    ),
    Case(
        name="LSTM with the batch as time",
        make=by(lambda self, x: self.rnn(x)[0], rnn=lambda: nn.LSTM(WIDTH, 4)),
        batch=steps,
        leaks=examples("rnn"),
    ),
    Case(
        name="scale by the largest",
        make=plain(lambda _, x: x / x.abs().max()),
        batch=rows,
        leaks=examples("1"),
    ),
    Case(
        name="quantisation by the largest",
        make=plain(quantised),
        batch=rows,
        leaks=examples("1"),
    ),
    Case(
        name="rows mixed by a reshape",
        make=by(
            lambda self, x: self.out(x.transpose(0, 1).reshape(len(x), -1, WIDTH)),
            out=linear,
        ),
        batch=steps,
        leaks=examples(""),
    ),
    Case(
        name="expert capacity",
        make=by(lambda self, x: x + self.experts(x), experts=lambda: Experts(2)),
        batch=rows,
        leaks=examples("experts"),
    ),
    Case(
        name="largest rows kept",
        make=plain(keep_largest),
        batch=rows,
        leaks=examples("1"),
    ),
    Case(name="mixup", make=plain(mixup), batch=rows, leaks=examples("1", TRAIN)),
    Case(
        name="minibatch deviation",
        make=plain(lambda _, x: x + x.std(0).mean()),
        batch=rows,
        leaks=examples("1"),
    ),
    Case(
        name="queue filled before use",
        make=lambda: Queue(first=True),
        batch=rows,
        leaks=examples(""),
    ),
    Case(
        name="similarity to the batch",
        make=by(lambda self, x: self.a(x) @ self.a(x).T, a=linear),
        batch=rows,
        leaks=examples(""),
    ),
    Case(
        name="loss over pairs, InfoNCE",
        make=layers(),
        batch=lambda: (rows(), rows()),
        leaks={("loss", "(loss)"): BOTH},
        options={"loss": infonce},
    ),
    Case(
        name="loss over pairs, ranking",
        make=layers(),
        batch=labelled,
        leaks={("loss", "(loss)"): BOTH},
        options={"loss": ranking},
    ),
    Case(
        name="loss weighed by the largest",
        make=layers(),
        batch=labelled,
        leaks={("loss", "(loss)"): BOTH},
        options={"loss": weighted},
    ),
    Case(
        name="advantages over the group",
        make=layers(),
        batch=labelled,
        leaks=examples("(loss)"),
        options={"loss": advantages},
    ),
    Case(
        name="GroupNorm over time",
        make=causal_conv(lambda: nn.GroupNorm(2, WIDTH)),
        batch=channels,
        leaks=over_time("2"),
        options=CHANNELS,
    ),
    Case(
        name="symmetric padding",
        make=same_conv,
        batch=channels,
        leaks=over_time("0"),
        options=CHANNELS,
    ),
    Case(
        name="both directions",
        make=by(
            lambda self, x: self.rnn(x)[0],
            rnn=lambda: nn.LSTM(WIDTH, 4, batch_first=True, bidirectional=True),
        ),
        batch=steps,
        leaks=over_time("rnn"),
        options=TIME,
    ),
    Case(
        name="no causal mask",
        make=Attention,
        batch=tokens,
        leaks=over_time("attention"),
        options=TIME,
    ),
    Case(
        name="no block mask",
        make=Attention,
        batch=tokens,
        leaks={("documents", "attention"): BOTH},
        options={
            "call": lambda model, batch: model(batch, CAUSAL),
            "documents": documents(),
            "time_axis": 1,
        },
    ),
]

CLEAN = [
    Case(name="dropout", make=layers(nn.Dropout(0.3)), batch=rows),
    Case(name="LayerNorm", make=layers(nn.LayerNorm(WIDTH)), batch=rows),
    Case(name="RMSNorm", make=layers(nn.RMSNorm(WIDTH)), batch=rows),
    Case(
        name="GroupNorm",
        make=lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
        batch=images,
    ),
    Case(
        name="InstanceNorm",
        make=lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)),
        batch=images,
    ),
    Case(name="frozen BatchNorm", make=lambda: FrozenNorm().train(), batch=rows),
    Case(name="frozen BatchNorm, by eval()", make=eval_norm, batch=rows),
    Case(
        name="spectral norm",
        make=lambda: nn.Sequential(spectral_norm(nn.Linear(WIDTH, 3))),
        batch=rows,
    ),
    Case(name="softmax over classes", make=layers(nn.Softmax(1)), batch=rows),
    Case(
        name="detach", make=plain(lambda _, x: x.detach() - x.mean(1, True)), batch=rows
    ),
    Case(name="queue filled after use", make=lambda: Queue(first=False), batch=rows),
    Case(
        name="experts without capacity",
        make=by(lambda self, x: x + self.experts(x), experts=lambda: Experts(ROWS)),
        batch=rows,
    ),
    Case(name="attention", make=attention(batch_first=True), batch=steps),
    Case(
        name="attention with padding",
        make=by(
            masked_encoder,
            embed=lambda: nn.Embedding(TOKENS, WIDTH),
            layer=lambda: encoder_layer(batch_first=True),
        ),
        batch=padded,
    ),
    Case(
        name="unpadded tokens",
        make=by(
            unpadded,
            embed=lambda: nn.Embedding(TOKENS, WIDTH),
            net=lambda: nn.Sequential(
                nn.Linear(WIDTH, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 3)
            ),
        ),
        batch=padded,
    ),
    Case(
        name="LSTM",
        make=by(
            lambda self, x: self.rnn(x),
            rnn=lambda: nn.LSTM(WIDTH, 4, batch_first=True),
        ),
        batch=steps,
        options=TIME,
    ),
    Case(
        name="packed GRU",
        make=by(packed_gru, rnn=lambda: nn.GRU(WIDTH, 4, batch_first=True)),
        batch=lambda: {"x": steps(), "lengths": torch.randint(2, STEPS + 1, (ROWS,))},
    ),
    Case(
        name="steps first inside",
        make=by(
            lambda self, x: self.rnn(x.transpose(0, 1))[0].transpose(0, 1),
            rnn=lambda: nn.GRU(WIDTH, 4),
        ),
        batch=steps,
        options=TIME,
    ),
    Case(
        name="causal convolution",
        make=causal_conv(),
        batch=channels,
        options=CHANNELS,
    ),
    Case(
        name="causal attention",
        make=Attention,
        batch=tokens,
        options={"call": lambda model, batch: model(batch, CAUSAL), "time_axis": 1},
    ),
    Case(
        name="block mask",
        make=Attention,
        batch=lambda: {"tokens": tokens(), "number": documents()},
        options={
            "call": lambda model, b: model(b["tokens"], block_mask(b["number"])),
            "documents": documents(),
            "time_axis": 1,
        },
    ),
    Case(
        name="cross-entropy",
        make=layers(nn.Dropout(0.2)),
        batch=labelled,
        options={"loss": cross_entropy},
    ),
    Case(
        name="sum and count of tokens",
        make=Attention,
        batch=padded,
        options={"loss": token_sum},
    ),
    Case(
        name="mean over tokens",
        make=Attention,
        batch=padded,
        options={"loss": ignoring_mean},
    ),
    Case(
        name="probabilities as targets",
        make=layers(),
        batch=lambda: (rows(), torch.rand(ROWS, 3)),
        options={"loss": probabilities},
    ),
]
