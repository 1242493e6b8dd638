"""What rules compare: gradients of a batch in pieces and on ranks, leaks, draws."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.guards import evaluating, preserved_rng
from rightbatch.coupling.batch_statistics import frozen
from rightbatch.coupling.leak import Leaks
from rightbatch.coupling.leakage import leaks
from rightbatch.coupling.local_ranks import on_local_ranks
from rightbatch.data.audit.read_indices import Draws, read_indices
from rightbatch.lint.probe import (
    LEAK_PASSES,
    Gradient,
    PassTooLongError,
    Probe,
    Searched,
)
from rightbatch.training.gradient import Part

# Relative difference of gradients that rounding may make. [assumed]
SAME, SAME_OF_HALVES = 1e-3, 0.03
MOST_RANKS = 4  # processes on this machine: what is wrong at 64 ranks is at 4 [assumed]
RANK_EXAMPLES = 4  # on each of them [assumed]
WEIGHTED_MEANS = (F.cross_entropy, F.nll_loss)  # they divide by the sum of the weights
CLASS_LOSSES = (
    *WEIGHTED_MEANS,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
)


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
        >>> import torch
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
    """Pieces accumulated, their size, and their gradient, if it is another one.

    None: it is not, there is one piece, or the passes draw random numbers. Pieces are
    smaller where there are too few examples for two.

    Raises:
        PassTooLongError: There is no time for both gradients.
    """
    split, length = probe.setup.split(probe.job), probe.job.length
    if split.accumulation < 2 or length < 2:
        return None
    size = min(split.micro_batch, length // 2)
    count = min(split.accumulation, length // size)
    whole, drawn = _gradient(probe, [(0, count * size)])
    if drawn:
        return None
    cut = list(pairwise(range(0, (count + 1) * size, size)))
    found = apart(_gradient(probe, cut)[0], whole)
    return (count, size, found) if found.share > _rounding(probe) else None


def on_ranks(probe: Probe) -> tuple[int, Apart] | None:
    """Processes on this machine, and the mean of their gradients, as DDP makes it.

    Each takes a few examples, without dropout and with BatchNorm in eval mode. None:
    it is the gradient of one process, processes cannot be forked here, there are too
    few examples, or the passes draw random numbers.

    Raises:
        PassTooLongError: There is no time for the gradients.
        JobError: The loss fails on several ranks.
    """
    ranks = min(probe.setup.ranks, MOST_RANKS)
    size = min(RANK_EXAMPLES, probe.job.length // ranks)
    if size < 2:
        return None
    with frozen(probe.model), suppress(SettingError):
        whole, drawn = _gradient(probe, [(0, ranks * size)])

        def measure() -> Apart:
            start = dist.get_rank() * size
            mean = _gradient(probe, [(start, start + size)])[0] / ranks
            dist.all_reduce(mean)
            return apart(mean, whole)

        if not drawn:
            found = on_local_ranks(measure, [ranks])[ranks]
            return (ranks, found) if found.share > _rounding(probe) else None
    return None


def _gradient(probe: Probe, cut: list[tuple[int, int]]) -> tuple[Gradient, bool]:
    """Of the mean over these examples, one pass for each range."""
    job, device = probe.job, probe.device
    return probe.gradient(
        [Part(job.batch(range(*r), device), r[1] - r[0]) for r in cut]
    )


def _rounding(probe: Probe) -> float:
    return SAME if probe.job.precision == "float32" else SAME_OF_HALVES


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


class _Watched(TorchFunctionMode):
    """Sees the losses of classes, and whether each is a mean over class weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weighted: list[bool] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func in CLASS_LOSSES:
            mean = func in WEIGHTED_MEANS and given.get("reduction") == "mean"
            self.weighted.append(mean and given.get("weight") is not None)
        return func(*args, **given)


def class_losses(probe: Probe) -> list[bool]:
    """Of each loss of classes that is called, whether it divides by class weights."""
    batch = probe.batch(probe.few)
    with (
        probe.timed(probe.few),
        evaluating(probe.model),
        preserved_rng(),
        _Watched() as watched,
    ):
        probe.job.mean_loss(probe.model, batch)
    return watched.weighted
