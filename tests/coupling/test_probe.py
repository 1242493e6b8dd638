"""What touches is found, whatever its class; what does not is never accused."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rightbatch as rb
from cases import regression_job
from rightbatch.coupling.probe import find_coupling, interaction, is_mean_of_means

WIDTH, CLASSES, EXAMPLES = 6, 3, 200
_made = torch.Generator().manual_seed(0)
X = torch.randn(EXAMPLES, WIDTH, generator=_made)
CLASS = torch.randint(CLASSES, (EXAMPLES,), generator=_made)
LENGTH = torch.randint(1, 5, (EXAMPLES,), generator=_made)
PRESENT = (torch.arange(5)[None] < LENGTH[:, None]).float()  # a ragged mask
TOKENS = torch.randint(1, 9, (EXAMPLES, 5), generator=_made) * PRESENT.long()


def net(*layers: nn.Module, out: int = CLASSES) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 8), *layers, nn.ReLU(), nn.Linear(8, out))


def entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Standardised(nn.Module):
    """A normalization of nobody's class."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0) + 1e-3) if self.training else x


class Images(nn.Module):
    """Convolution, norm, dropout, and a last layer that begins at zero."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(1, 4, 3), norm
        self.last = nn.Linear(4, CLASSES)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(self.norm(self.first(x[:, None])), 0.3, self.training)
        return self.last(F.relu(hidden).mean(2))


class DropPath(nn.Module):
    """Leaves out whole examples."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(len(x), 1) < 0.8) if self.training else x


class Frozen(nn.Sequential):
    """Its BatchNorm stays in eval mode."""

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self[1].eval()
        return self


class Across(nn.Module):
    """Attention from example to example."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2)
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        return self.last(self.attention(x, x, x)[0][:, 0])


class Autoencoder(nn.Module):
    """Variational: random in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(WIDTH, 4), nn.Linear(2, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.encoder(x).chunk(2, 1)
        return self.decoder(mean + torch.randn_like(mean) * spread)


class Language(nn.Module):
    """Recurrent, on packed sequences."""

    def __init__(self, *, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.norm = nn.BatchNorm1d(4) if norm else nn.Identity()
        self.rnn = nn.LSTM(4, 4, 2, batch_first=True, dropout=dropout)
        self.last = nn.Linear(4, 9)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        hidden = self.norm(self.table(tokens).transpose(1, 2)).transpose(1, 2)
        packed = nn.utils.rnn.pack_padded_sequence(
            hidden, lengths, batch_first=True, enforce_sorted=False
        )
        output, _ = nn.utils.rnn.pad_packed_sequence(
            self.rnn(packed)[0], batch_first=True, total_length=tokens.shape[1]
        )
        return self.last(output)


def token_sum(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    tokens, lengths = batch
    logits = model(tokens, lengths).flatten(0, 1)
    total = F.cross_entropy(logits, tokens.flatten(), ignore_index=0, reduction="sum")
    return total, lengths.sum()


def token_mean(model: nn.Module, batch: Any) -> Tensor:
    total, count = token_sum(model, batch)
    return total / count


def masked_mean(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]).square() * batch[1]).sum() / batch[1].sum()


def pairwise(model: nn.Module, batch: Any) -> Tensor:
    one, two = (F.normalize(model(batch[0] + 0.3 * torch.randn(WIDTH))) for _ in "ab")
    signs = 2 * torch.eye(len(one)) - 1
    return -F.logsigmoid(10 * one @ two.T * signs).sum() / len(one)


def info_nce(model: nn.Module, batch: Any) -> Tensor:
    one, two = (F.normalize(model(batch[0] + 0.3 * torch.randn(WIDTH))) for _ in "ab")
    return F.cross_entropy(5 * one @ two.T, torch.arange(len(one)))


def centred(model: nn.Module, batch: Any) -> Tensor:
    output = model(batch[0])
    return F.cross_entropy(output - output.mean(0).detach(), batch[1])


def balanced(model: nn.Module, batch: Any) -> Tensor:
    counts = torch.bincount(batch[1], minlength=CLASSES).clamp(min=1)
    return F.cross_entropy(model(batch[0]), batch[1], weight=1 / counts)


def weighted(model: nn.Module, batch: Any) -> Tensor:
    weight = torch.linspace(0.1, 3, CLASSES)
    return F.cross_entropy(model(batch[0]), batch[1], weight=weight)


def smoothed(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)


def mixed(model: nn.Module, batch: Any) -> Tensor:
    """Mixup inside the loss: by construction each example meets another."""
    x, y = batch
    other, share = torch.randperm(len(x)), float(torch.rand(()))
    output = model(share * x + (1 - share) * x[other])
    return share * F.cross_entropy(output, y) + (1 - share) * F.cross_entropy(
        output, y[other]
    )


def reconstruction(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[0]).square().mean()


def offset(model: nn.Module, batch: Any) -> Tensor:
    return 100 + entropy(model, batch)


def root(model: nn.Module, batch: Any) -> Tensor:
    return reconstruction(model, batch).sqrt()


IMAGES, RAGGED, TEXT = (X, CLASS), (X, PRESENT), (TOKENS, LENGTH)
CASES: dict[str, tuple[str, Callable[[], nn.Module], Any, tuple[Tensor, ...]]] = {
    "plain": ("", net, entropy, IMAGES),
    "far from zero": ("", net, offset, IMAGES),
    "layer norm": ("", lambda: net(nn.LayerNorm(8)), entropy, IMAGES),
    "group norm": ("", lambda: Images(nn.GroupNorm(2, 4)), entropy, IMAGES),
    "instance norm": ("", lambda: Images(nn.InstanceNorm1d(4)), entropy, IMAGES),
    "dropout": ("", lambda: net(nn.Dropout(0.5)), entropy, IMAGES),
    "drop path": ("", lambda: net(DropPath()), entropy, IMAGES),
    "smoothed labels": ("", net, smoothed, IMAGES),
    "fixed weights of classes": ("", net, weighted, IMAGES),
    "variational": ("", Autoencoder, reconstruction, IMAGES),
    "masked mean": ("", lambda: net(out=5), masked_mean, RAGGED),
    "masked, dropout": (
        "",
        lambda: net(nn.Dropout(0.5), out=5),
        masked_mean,
        RAGGED,
    ),
    "token sum": ("", Language, token_sum, TEXT),
    "token mean": ("", Language, token_mean, TEXT),
    "token mean, dropout": ("", lambda: Language(dropout=0.3), token_mean, TEXT),
    "frozen batch norm": (
        "",
        lambda: Frozen(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)),
        entropy,
        IMAGES,
    ),
    "batch norm": ("normalization", lambda: net(nn.BatchNorm1d(8)), entropy, IMAGES),
    "batch norm, dropout": (
        "normalization",
        lambda: net(nn.BatchNorm1d(8), nn.Dropout(0.5)),
        entropy,
        IMAGES,
    ),
    "behind a layer of zeros": (
        "normalization",
        lambda: Images(nn.BatchNorm1d(4)),
        entropy,
        IMAGES,
    ),
    "of no class": ("normalization", lambda: net(Standardised()), entropy, IMAGES),
    "batch norm, masked": (
        "normalization",
        lambda: net(nn.BatchNorm1d(8), out=5),
        masked_mean,
        RAGGED,
    ),
    "batch norm, packed": (
        "normalization",
        lambda: Language(dropout=0.3, norm=True),
        token_mean,
        TEXT,
    ),
    "batch norm in eval mode too": (
        "loss",
        lambda: net(nn.BatchNorm1d(8, track_running_stats=False)),
        entropy,
        IMAGES,
    ),
    "info nce": ("loss", net, info_nce, (X,)),
    "sigmoid of pairs": ("loss", net, pairwise, (X,)),
    "less the batch's mean": ("loss", net, centred, IMAGES),
    "balanced by the batch's counts": ("loss", net, balanced, IMAGES),
    "mixup": ("loss", net, mixed, IMAGES),
    "attention over the batch": ("loss", Across, entropy, IMAGES),
    "root of a mean": ("loss", lambda: net(out=WIDTH), root, IMAGES),
}
MEANS = {
    "fixed weights of classes",
    "masked mean",
    "masked, dropout",
    "token mean",
}


def job_of(case: str, **more: Any) -> rb.Job:
    _, model, loss, data = CASES[case]
    return regression_job(model=model, loss=loss, data=data, **more)


@pytest.mark.parametrize("case", CASES)
def test_what_touches_is_found(case: str) -> None:
    job = job_of(case)
    coupling = find_coupling(job, job.make_model())
    assert coupling.kind == CASES[case][0]
    assert coupling.mean_of_means == (case in MEANS)
    # Shapes of random numbers differ there, and no layer normalises.
    assert coupling.by_type == (case == "token mean, dropout")


@pytest.mark.parametrize("case", ["batch norm", "info nce", "plain"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pairs_tell_it_too_where_a_pass_is_slow(case: str, precision: str) -> None:
    job = job_of(case, precision=precision)
    coupling = find_coupling(job, job.make_model(), allowance_s=0)
    assert (coupling.kind, coupling.examples) == (CASES[case][0], 2)


@pytest.mark.parametrize("norm", ["", "normalization"])
def test_half_precision_weights(norm: str) -> None:
    """The loss itself is rounded to three digits."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0].bfloat16()), batch[1])

    layers = [nn.BatchNorm1d(8)] if norm else []
    job = regression_job(
        model=lambda: net(*layers).bfloat16(), loss=loss, data=(5 * X, CLASS)
    )
    assert find_coupling(job, job.make_model()).kind == norm


def test_no_trace_is_left() -> None:
    job = job_of("behind a layer of zeros")
    model = job.make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    assert find_coupling(job, model).kind == "normalization"
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


class Sixteen(nn.Module):
    """Runs on sixteen examples only."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(x.view(16, WIDTH)))


def test_layers_tell_where_the_job_cannot_be_probed() -> None:
    def unsteady(model: nn.Module, batch: Any) -> Tensor:
        return entropy(model, batch) * (1 + random.SystemRandom().random())

    fixed = regression_job(model=Sixteen, loss=entropy, data=IMAGES)
    coupling = find_coupling(fixed, fixed.make_model())
    assert (coupling.kind, coupling.by_type) == ("normalization", True)
    moody = regression_job(model=net, loss=unsteady, data=IMAGES)
    coupling = find_coupling(moody, moody.make_model())
    assert (coupling.kind, coupling.by_type) == ("", True)


def test_data_smaller_than_all_halves() -> None:
    job = job_of("batch norm", batch_size=4)
    small = regression_job(
        model=job.model, loss=job.loss, data=(X[:5], CLASS[:5]), batch_size=4
    )
    assert find_coupling(small, small.make_model()).kind == "normalization"


def test_augmentation_is_drawn_once() -> None:
    """As many random numbers as each image wants: the next image would get others."""

    class Augmented(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return EXAMPLES

        def __getitem__(self, index: int) -> Any:
            draws = torch.rand(1 + index % 3)
            return X[index] + draws.sum(), CLASS[index]

    job = regression_job(model=net, loss=entropy, data=Augmented())
    assert find_coupling(job, job.make_model()).kind == ""


def test_an_error_of_the_job_that_is_no_lack_of_memory_is_no_crash() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        raise KeyError("no such column")

    job = regression_job(model=net, loss=loss, data=IMAGES)
    assert find_coupling(job, job.make_model()).by_type


def test_a_mean_of_means_is_told_from_other_tables() -> None:
    generator = np.random.default_rng(0)
    s, t = generator.normal(size=(2, 4))
    n, m = generator.integers(1, 9, size=(2, 4))
    means = (s[:, None] + t) / (n[:, None] + m)
    assert interaction(means) > 1e-2
    assert is_mean_of_means(means, 1e-7)
    product = s[:, None] + t + 0.01 * np.outer(n, m)
    assert not is_mean_of_means(product, 1e-7)
    assert not is_mean_of_means(generator.normal(size=(4, 4)), 1e-3)
    below = np.array([5, -9, 3, 2])[:, None] + m  # zero counts nothing
    assert not is_mean_of_means((s[:, None] + t) / below, 1e-7)
