"""What rules compare: gradients of a batch in pieces and on ranks, leaks, draws."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float64
from torch import Tensor

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.guards import preserved_rng, untouched
from rightbatch.core.torch_private import Dropout
from rightbatch.coupling.batch_statistics import frozen
from rightbatch.coupling.leak import Leaks
from rightbatch.coupling.leakage import leaks
from rightbatch.coupling.local_ranks import on_local_ranks
from rightbatch.data.audit.read_indices import Draws, read_indices
from rightbatch.job.loss import PRECISIONS
from rightbatch.lint.probe import (
    BACKWARD,
    LEAK_PASSES,
    PassTooLongError,
    Probe,
    Searched,
)
from rightbatch.training.gradient import Part, sum_gradients

SAME = 1e-3  # relative difference of gradients that rounding may make [assumed]
MOST_RANKS = 4  # processes on this machine: what is wrong at 64 ranks is at 4 [assumed]
RANK_EXAMPLES = 4  # on each of them [assumed]

Gradient = Float64[Tensor, " parameters"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """A gradient against that of the whole batch at once.

    Attributes:
        share: Norm of the difference over the norm of the latter.
        cosine: Of the angle between them.
        factor: Norm over norm.
    """

    share: float
    cosine: float
    factor: float


def apart(gradient: Gradient, whole: Gradient) -> Apart:
    """How far a gradient is from that of the whole batch.

    Example:
        >>> apart(torch.tensor([2.0, 0.0]), torch.tensor([4.0, 0.0])).factor
        0.5
    """
    norm = max(float(whole.norm()), 1e-30)
    both = max(float(gradient.norm()) * norm, 1e-30)
    return Apart(
        share=float((gradient - whole).norm()) / norm,
        cosine=float(gradient @ whole) / both,
        factor=float(gradient.norm()) / norm,
    )


def in_pieces(probe: Probe) -> tuple[int, int, Apart] | None:
    """Pieces accumulated, their size, and their gradient; None: there is one piece.

    Raises:
        PassTooLongError: There is no time for both gradients.
    """
    split = probe.setup.split(probe.job)
    size = split.micro_batch
    count = min(split.accumulation, probe.job.length // size)
    if count < 2:
        return None
    with probe.timed(2 * BACKWARD * count * size):
        whole = _gradient(probe, [(0, count * size)])
        cut = list(pairwise(range(0, (count + 1) * size, size)))
        return count, size, apart(_gradient(probe, cut), whole)


def on_ranks(probe: Probe) -> tuple[int, Apart] | None:
    """Processes on this machine, and the mean of their gradients, as DDP makes it.

    Each takes a few examples, without dropout and with BatchNorm in eval mode. None:
    processes cannot be forked here, or there are too few examples.

    Raises:
        PassTooLongError: There is no time for the gradients.
        JobError: The loss fails on several ranks.
    """
    ranks = min(probe.setup.ranks, MOST_RANKS)
    size = min(RANK_EXAMPLES, probe.job.length // ranks)
    if size < 2:
        return None
    with probe.timed(2 * BACKWARD * ranks * size), frozen(probe.model):
        whole = _gradient(probe, [(0, ranks * size)])

        def measure() -> Apart:
            start = dist.get_rank() * size
            mean = _gradient(probe, [(start, start + size)]) / ranks
            dist.all_reduce(mean)
            return apart(mean, whole)

        with suppress(SettingError):
            return ranks, on_local_ranks(measure, [ranks])[ranks]
    return None


def _gradient(probe: Probe, cut: list[tuple[int, int]]) -> Gradient:
    """Of the mean over these examples, one pass for each range, without dropout."""
    job, model = probe.job, probe.model
    parts = [Part(job.batch(range(a, b), probe.device), b - a) for a, b in cut]
    with preserved_rng(), untouched(model, []):
        for module in model.modules():
            if isinstance(module, Dropout):
                module.eval()
        passes = sum_gradients(
            model,
            job.loss,
            parts,
            device=probe.device,
            dtype=PRECISIONS[job.precision],
        )
        terms = max(float(sum(passes.counts)), 1e-30)
        trained = [p for p in model.parameters() if p.requires_grad]
        made = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        return torch.cat([g.flatten().double().cpu() for g in made]) / terms


def leaking_ahead(probe: Probe, time_axis: int) -> Searched:
    """What leaks among a few examples and steps."""
    return probe.searched(partial(leaks, time_axis=time_axis))


def leaking_ranks(probe: Probe) -> Searched:
    """What leaks between the ranks of our group, or two processes of this machine.

    Raises:
        PassTooLongError: There is no time.
    """
    job, model = probe.job, probe.model
    size = min(RANK_EXAMPLES, job.batch_size, job.length // 2)
    if size < 2:
        return Leaks(items=(), examples=size, passes=0)
    if not probe.affords(2 * LEAK_PASSES * size):
        raise PassTooLongError(probe.forward_s * 2 * LEAK_PASSES * size)

    def measure() -> Leaks:
        start = dist.get_rank() * size % (job.length - size + 1)
        batch = job.batch(range(start, start + size), probe.device)
        return leaks(model, batch, loss=job.loss, ranks=True)

    try:
        with frozen(model):
            joined = dist.is_available() and dist.is_initialized()
            return measure() if joined else on_local_ranks(measure, [2])[2]
    except (SettingError, JobError) as error:
        return error


def drawn_by(loader: Any, most: int) -> Draws | None:
    """What a loader is going to draw; None where it has no indices.

    Args:
        loader: Left as it is.
        most: Examples after which to stop.
    """
    try:
        return read_indices(loader, most)
    except SettingError:
        return None
