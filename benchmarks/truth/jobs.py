"""Thirteen real jobs, small enough to know the truth of: every batch at every rate.

All data come with installed packages (scikit-learn's sets and photos, which need
pillow) or with Python itself. Each job's target is a held-out value that a well-tuned
run reaches in about a second of one core and a badly tuned one late or never.

    python benchmarks/truth/jobs.py    # names and sizes
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import Tensor, nn

import rightbatch as rb
from rightbatch.job.built_in import contrastive_digits as built_in_contrastive
from rightbatch.job.built_in import digits as built_in_digits
from rightbatch.job.built_in import rare_class as built_in_rare
from rightbatch.job.built_in import stdlib_gpt as built_in_gpt

SEED = torch.Generator().manual_seed(0).initial_seed()  # of splits; never of training


@dataclass(frozen=True)
class Case:
    """A job and what is tried of it.

    Attributes:
        make: The job, with data loaded.
        batches: Powers of two.
        rates: Wide enough that the best of every useful batch is interior.
        limit_s: CPU seconds of training after which a run is given up.
        piece: Examples whose statistics BatchNorm takes together, or None.
        todays: Batches to start from; by default a quarter and four times the best.
    """

    make: Callable[[], rb.Job]
    batches: tuple[int, ...]
    rates: tuple[float, ...]
    limit_s: float = 8.0
    piece: int | None = None
    todays: tuple[int, ...] = ()


def powers(first: int, last: int, factor: int = 2) -> tuple[int, ...]:
    """``first``, ``first * factor`` and so on up to ``last``."""
    found = [first]
    while found[-1] * factor <= last:
        found.append(found[-1] * factor)
    return tuple(found)


def rates(first: float, count: int, factor: float = 2.0) -> tuple[float, ...]:
    """``count`` rates from ``first`` upwards, each ``factor`` times the one before."""
    return tuple(float(f"{first * factor**i:.4g}") for i in range(count))


def shuffled(*tensors: Tensor, held_out: int) -> tuple[list[Tensor], list[Tensor]]:
    """Kept and held-out rows, by one fixed permutation."""
    order = torch.randperm(
        len(tensors[0]), generator=torch.Generator().manual_seed(SEED)
    )
    held, kept = order[:held_out], order[held_out:]
    return [t[kept] for t in tensors], [t[held] for t in tensors]


def mlp(*widths: int, bias: bool = True) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def supervised(
    criterion: Callable[[Tensor, Tensor], Tensor],
    kept: list[Tensor],
    held: list[Tensor],
    **facts: Any,
) -> rb.Job:
    """A job of (input, label) rows whose held-out measure is its own loss."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return criterion(model(batch[0]), batch[1])

    return rb.Job(
        loss=loss,
        data=tuple(kept),
        evaluate=lambda model: loss(model, (held[0], held[1])).item(),
        **facts,
    )


def sgd(rate: float, momentum: float = 0.9) -> Callable[..., torch.optim.Optimizer]:
    """A factory of SGD."""
    return lambda params: torch.optim.SGD(params, lr=rate, momentum=momentum)


def adam(rate: float) -> Callable[..., torch.optim.Optimizer]:
    """A factory of Adam."""
    return lambda params: torch.optim.Adam(params, lr=rate)


def library(limit: int) -> list[str]:
    """The texts of the library's sources, some ``limit`` characters together."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests"}
    found, size = [], 0
    for path in sorted(root.rglob("*.py")):
        if skipped & set(path.relative_to(root).parts) or size > limit:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found.append(text)
        size += len(text)
    return found


def logistic() -> rb.Job:
    """Digits by multinomial logistic regression: SGD without momentum."""
    x, y, held_x, held_y = built_in_digits.load_digits()
    return supervised(
        F.cross_entropy,
        [x, y],
        [held_x, held_y],
        model=lambda: nn.Linear(64, 10),
        optimizer=sgd(1.0, momentum=0.0),
        batch_size=16,
        target=0.09,
        name="logistic",
    )


WORDS, LENGTH, FILES = 4096, 24, 256


def words() -> rb.Job:
    """Which of the library's files two dozen words are from: a bag of words, Adam."""
    texts = sorted(library(20_000_000), key=len)[-FILES:]
    rows: list[tuple[list[str], int]] = []
    for label, text in enumerate(texts):
        tokens = re.findall(r"[A-Za-z_]+", text)
        starts = range(0, len(tokens) - LENGTH, LENGTH)
        rows += [(tokens[i : i + LENGTH], label) for i in starts]
    counts = Counter(token for tokens, _ in rows for token in tokens)
    number = {token: i for i, (token, _) in enumerate(counts.most_common(WORDS - 1), 1)}
    bags = torch.tensor([[number.get(t, 0) for t in tokens] for tokens, _ in rows])
    kept, held = shuffled(bags, torch.tensor([c for _, c in rows]), held_out=1024)
    return supervised(
        F.cross_entropy,
        kept,
        held,
        model=lambda: nn.Sequential(
            nn.EmbeddingBag(WORDS, 32, padding_idx=0), nn.Linear(32, FILES)
        ),
        optimizer=adam(0.01),
        batch_size=64,
        target=1.6,
        name="words",
        example=f"{LENGTH} words",
    )


def batchnorm() -> rb.Job:
    """Digits by an MLP with BatchNorm, SGD with momentum; statistics of 8."""
    x, y, held_x, held_y = built_in_digits.load_digits()
    return supervised(
        F.cross_entropy,
        [x, y],
        [held_x, held_y],
        model=lambda: nn.Sequential(
            nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10)
        ),
        optimizer=sgd(0.02),
        batch_size=8,
        target=0.05,
        name="batchnorm",
    )


def muon() -> rb.Job:
    """Digits by an MLP without biases, Muon on every matrix."""
    x, y, held_x, held_y = built_in_digits.load_digits()
    return supervised(
        F.cross_entropy,
        [x, y],
        [held_x, held_y],
        model=lambda: mlp(64, 64, 64, 10, bias=False),
        optimizer=lambda params: torch.optim.Muon(params, lr=0.01, weight_decay=0.0),
        batch_size=32,
        target=0.05,
        name="muon",
    )


def contrastive() -> rb.Job:
    """Digits found again under noise: InfoNCE over the batch, Adam."""
    x, _, held_x, _ = built_in_digits.load_digits()

    def info_nce(model: nn.Module, one: Tensor, other: Tensor) -> Tensor:
        one, other = (F.normalize(model(v), dim=1) for v in (one, other))
        return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))

    def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        one, other = (batch[0] + 0.25 * torch.randn_like(batch[0]) for _ in range(2))
        return info_nce(model, one, other)

    noise = torch.randn((2, 256, 64), generator=torch.Generator().manual_seed(SEED))
    held_one, held_other = held_x[:256] + 0.25 * noise
    return rb.Job(
        model=lambda: mlp(64, 128, 32),
        loss=loss,
        data=(x,),
        optimizer=adam(2e-3),
        batch_size=64,
        evaluate=lambda model: info_nce(model, held_one, held_other).item(),
        target=1.4,
        name="contrastive",
    )


def photo_pixels(name: str) -> Tensor:
    """A photo's colours in [0, 1], (height, width, 3)."""
    return torch.tensor(datasets.load_sample_image(name)).float() / 255


def regression() -> rb.Job:
    """A photo's next pixel from those left of it and above: an MLP, Adam."""
    grey = photo_pixels("flower.jpg").mean(2)
    windows = grey.unfold(0, 4, 1).unfold(1, 7, 1).reshape(-1, 28)
    before, pixel = windows[:, :24], windows[:, 24:25]  # three rows and three pixels
    mean = before.mean(1, keepdim=True)
    x, y = 8 * (before - mean), 8 * (pixel - mean)
    kept, held = shuffled(x, y, held_out=2048)
    return supervised(
        F.mse_loss,
        kept,
        held,
        model=lambda: mlp(24, 64, 64, 1),
        optimizer=adam(2e-3),
        batch_size=32,
        target=0.024,
        name="regression",
        example="pixel",
    )


def photo() -> rb.Job:
    """A photo's colour from its coordinates, by Fourier features; SGD with momentum."""
    pixels = photo_pixels("china.jpg")
    height, width = pixels.shape[:2]
    rows, columns = torch.meshgrid(
        torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij"
    )
    waves = torch.randn((2, 32), generator=torch.Generator().manual_seed(SEED)) * 20
    phases = torch.stack([rows, columns], 2).reshape(-1, 2) @ waves
    x, y = torch.cat([phases.sin(), phases.cos()], 1), pixels.reshape(-1, 3)
    kept, held = shuffled(x, y, held_out=1024)
    return supervised(
        F.mse_loss,
        kept,
        held,
        model=lambda: mlp(64, 64, 64, 3),
        optimizer=sgd(0.4),
        batch_size=64,
        target=0.015,
        name="photo",
        example="pixel",
    )


def lstm() -> rb.Job:
    """The next byte of Python's library: an LSTM, Adam."""
    text = "".join(library(4_000_000)).encode()
    count, length = len(text) // 25, 25
    flat = torch.frombuffer(bytearray(text[: count * length]), dtype=torch.uint8)
    (kept,), (held,) = shuffled(flat.view(count, length).long(), held_out=64)

    class ByteLSTM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bytes = nn.Embedding(256, 32)
            self.lstm = nn.LSTM(32, 64, batch_first=True)
            self.head = nn.Linear(64, 256)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(self.bytes(x))[0])

    def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        logits = model(batch[0][:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), batch[0][:, 1:].flatten())

    return rb.Job(
        model=ByteLSTM,
        loss=loss,
        data=(kept,),
        optimizer=adam(4e-3),
        batch_size=32,
        evaluate=lambda model: loss(model, (held,)).item(),
        target=1.9,
        name="lstm",
        example="sequence of 24 bytes",
    )


def patches() -> rb.Job:
    """Noisy 16 x 16 patches of two photos made clean: a small CNN, AdamW."""
    found = []
    for name in ("china.jpg", "flower.jpg"):
        grey = photo_pixels(name).mean(2)
        found.append(grey.unfold(0, 16, 8).unfold(1, 16, 8).reshape(-1, 1, 16, 16))
    clean = torch.cat(found)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(SEED))
    kept, held = shuffled(clean + 0.1 * noise, clean, held_out=64)

    def convolution(before: int, after: int) -> nn.Conv2d:
        return nn.Conv2d(before, after, 3, padding=1)

    return supervised(
        F.mse_loss,
        kept,
        held,
        model=lambda: nn.Sequential(
            convolution(1, 8),
            nn.ReLU(),
            convolution(8, 8),
            nn.ReLU(),
            convolution(8, 1),
        ),
        optimizer=lambda params: torch.optim.AdamW(params, lr=4e-3),
        batch_size=16,
        target=0.0027,
        name="patches",
        example="16 x 16 patch",
    )


def easier_gpt() -> rb.Job:
    """The built-in transformer on Python's library to an earlier target, AdamW."""
    return dataclasses.replace(built_in_gpt.make_job(), target=2.35)


JOBS = {
    "digits": Case(built_in_digits.make_job, powers(4, 512), rates(0.00625, 7)),
    "logistic": Case(logistic, powers(1, 256), rates(0.16, 8)),
    "words": Case(words, powers(8, 2048), rates(2.5e-3, 7)),
    "batchnorm": Case(batchnorm, powers(8, 256), rates(0.005, 8), piece=8, todays=(8,)),
    "muon": Case(muon, powers(4, 512), rates(1.25e-3, 7)),
    "contrastive": Case(contrastive, powers(8, 512), rates(2.5e-4, 7)),
    "contrastive_digits": Case(
        built_in_contrastive.make_job, powers(8, 512), rates(5e-4, 6)
    ),
    "rare_class": Case(built_in_rare.make_job, powers(4, 512), rates(0.1, 7)),
    "regression": Case(regression, powers(16, 4096), rates(1e-3, 7)),
    "photo": Case(photo, powers(8, 2048), rates(0.05, 7)),
    "lstm": Case(lstm, powers(4, 256), rates(2e-3, 6)),
    "patches": Case(patches, powers(2, 128), rates(1e-3, 6)),
    "stdlib_gpt": Case(easier_gpt, powers(2, 64), rates(1e-3, 5), limit_s=40.0),
}


def parameters(model: nn.Module | Iterable[nn.Parameter]) -> int:
    """How many numbers are trained."""
    found = model.parameters() if isinstance(model, nn.Module) else model
    return sum(p.numel() for p in found)


if __name__ == "__main__":
    for name, case in JOBS.items():
        job = case.make()
        print(f"{name:<12} {job.length:>7} {parameters(job.make_model()):>8}")
