"""Digits: scikit-learn's 1,797 scanned digits, a small MLP, SGD with momentum."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rightbatch.core.errors import MissingExtraError
from rightbatch.job.job import Job

HELD_OUT = 360  # examples for evaluation, chosen by a fixed permutation
# Today's batch is a usual one for a data set this small. The learning rate is the best
# for that batch among powers of two times 0.0125 [measured: benchmarks/truth/grid.py].
BATCH_SIZE, LEARNING_RATE = 16, 0.05
TARGET = 0.12  # mean cross-entropy on the held-out digits, about 97 % right


def load_digits(job: str = "digits") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and held-out pixels in [0, 1] (n, 64) with their classes (n,).

    Args:
        job: Who asks, for the message.

    Raises:
        MissingExtraError: scikit-learn, which carries the data, is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"the job {job!r} needs scikit-learn, which carries its data",
            fix="pip install 'rightbatch[examples]'",
        ) from error
    bunch: Any = datasets.load_digits()
    pixels = torch.tensor(bunch.data, dtype=torch.float32) / 16
    classes = torch.tensor(bunch.target)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    held, kept = order[:HELD_OUT], order[HELD_OUT:]
    return pixels[kept], classes[kept], pixels[held], classes[held]


def make_model() -> nn.Module:
    """An MLP 64-256-256-10."""
    return nn.Sequential(
        nn.Linear(64, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy."""
    pixels, classes = batch
    return F.cross_entropy(model(pixels), classes)


def make_job() -> Job:
    """The job, with data loaded."""
    pixels, classes, held_pixels, held_classes = load_digits()

    def evaluate(model: nn.Module) -> float:
        return F.cross_entropy(model(held_pixels), held_classes).item()

    return Job(
        model=make_model,
        loss=loss,
        data=(pixels, classes),
        optimizer=lambda params: torch.optim.SGD(
            params, lr=LEARNING_RATE, momentum=0.9
        ),
        batch_size=BATCH_SIZE,
        evaluate=evaluate,
        target=TARGET,
        name="digits",
        example="8 x 8 image",
    )
