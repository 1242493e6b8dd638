"""Digits found again in another view: two towers, InfoNCE over the batch, Adam."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rightbatch as rb
from rightbatch.job.built_in.digits import load_digits
from rightbatch.job.job import Job

WIDTH, DIMENSIONS = 128, 32
TEMPERATURE = 0.1
HELD_OUT_PAIRS = 256  # told apart when evaluating, whatever the training batch is
# Of a view: degrees of rotation at most, pixels of shift at most, standard deviation of
# noise on pixels in [0, 1]. [assumed]
ROTATION, SHIFT, NOISE = 15.0, 1.0, 0.1
# Today's batch is a usual one; so small a one that most of its steps are noise. The
# rate is the best for it among powers of two times 1e-3 [measured:
# benchmarks/truth/grid.py].
BATCH_SIZE, LEARNING_RATE = 64, 4e-3
TARGET = 2.3  # nats, to tell a pair among the held-out ones; by chance ln 256 = 5.5


class TwoTowers(nn.Module):
    """An MLP for each of two views; embeddings of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (
            nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, DIMENSIONS))
            for _ in range(2)
        )

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Two views (pairs, 64) to their embeddings (pairs, 32)."""
        return (
            F.normalize(self.one(one), dim=1),
            F.normalize(self.other(other), dim=1),
        )


def view(pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Turned, shifted and noisy copies of digits (n, 64), same shape."""
    drawn = 2 * torch.rand((3, len(pixels)), generator=generator) - 1
    angle, shift = math.radians(ROTATION) * drawn[0], SHIFT / 4 * drawn[1:]
    cos, sin = angle.cos(), angle.sin()
    moves = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], 1).view(-1, 2, 3)
    grid = F.affine_grid(moves, [len(pixels), 1, 8, 8], align_corners=False)
    turned = F.grid_sample(pixels.view(-1, 1, 8, 8), grid, align_corners=False)
    noise = torch.randn(pixels.shape, generator=generator)
    return turned.flatten(1) + NOISE * noise


def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    """InfoNCE between two views of the batch, drawn anew at every step."""
    return told_apart(model, view(batch[0]), view(batch[0]))


def told_apart(model: nn.Module, one: Tensor, other: Tensor) -> Tensor:
    """Mean cross entropy of telling each view's pair among all, both ways, in nats."""
    return rb.coupling.info_nce(*model(one, other), scale=1 / TEMPERATURE)


def make_job() -> Job:
    """The job, with data loaded."""
    pixels, _, held_out, _ = load_digits("contrastive_digits")
    generator = torch.Generator().manual_seed(0)
    one, other = (view(held_out[:HELD_OUT_PAIRS], generator) for _ in range(2))
    return Job(
        model=TwoTowers,
        loss=loss,
        data=(pixels,),
        optimizer=lambda params: torch.optim.Adam(params, lr=LEARNING_RATE),
        batch_size=BATCH_SIZE,
        evaluate=lambda model: told_apart(model, one, other).item(),
        target=TARGET,
        name="contrastive_digits",
        example="pair of 8 x 8 images",
    )
