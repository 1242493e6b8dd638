"""The loss as an average: what becomes of it where a batch is made in pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rightbatch.core.errors import JobError
from rightbatch.core.findings import Finding
from rightbatch.core.guards import evaluating, preserved_rng
from rightbatch.core.torch_private import is_out_of_memory
from rightbatch.core.trees import select_examples
from rightbatch.lint.probe import BACKWARD, Probe, Rule
from rightbatch.training.gradient import Part, sum_gradients

OFF = 0.01  # of the gradient's length: less is not told [assumed]
WEIGHTED_MEANS = (F.cross_entropy, F.nll_loss)  # they divide by the sum of the weights


def mean_of_means(probe: Probe) -> Finding | None:
    """A batch made in pieces has the gradient of the same batch made at once.

    A loss that divides by what a batch holds beside examples (tokens that are not
    padding, targets that are not masked) is another number for every way to cut the
    batch: the mean of the pieces' means counts a token of a short text more than one of
    a long text. With texts of 1 to 32 tokens the gradient of 64 in pieces of 4 is off
    by 7 % of its length, that of 8 taken one by one by 57 % [measured: medians of 15
    draws, tests/lint/bugs]. Many trainers had this until October 2024
    (huggingface/transformers#34191, meta-pytorch/torchtune#1875); torch's
    DistributedDataParallel, which averages over ranks, has it too.

    Return ``(sum, count)``: the sum of all terms and how many there are. `rb.train` and
    `rb.Accumulator` divide once, by the count of the whole batch over all ranks.

    It is not seen where a batch is made at once on one rank, nor where every example
    has as many terms; class weights are RB402.
    """
    if not _in_pieces(probe) or _class_weights(probe):
        return None
    return _told(
        probe,
        code="RB401",
        what="the mean of the pieces' means is not the mean of the batch",
        why="the loss divides by what each piece holds (tokens, unmasked targets), so "
        "a term counts more in a piece with few of them",
        fix="return (sum of the terms, number of terms); in a loop of your own, divide "
        "every piece's sum by the count of the whole batch",
    )


def class_weighted_means(probe: Probe) -> Finding | None:
    """Class weights mean the same in a batch made in pieces as in one made at once.

    ``CrossEntropyLoss(weight=w)`` divides by the sum of the weights of the targets in
    the piece it is given, not by their number. A piece without the rare class divides
    by little and counts as much as one that holds it, and of single examples the weight
    cancels altogether. With one example in 20 of a class that weighs 20 times the other
    the gradient of 64 in pieces of 4 is off by more than its own length [measured:
    median of 15 draws, tests/lint/bugs].

    Return ``(F.cross_entropy(..., weight=w, reduction="sum"), w[targets].sum())``, so
    that the division is made once, by the weights of the whole batch.

    It sees ``cross_entropy`` and ``nll_loss`` alone; a loss that divides by its weights
    in code of its own is told by RB401.
    """
    if not _in_pieces(probe) or not _class_weights(probe):
        return None
    return _told(
        probe,
        code="RB402",
        what="what a class weighs depends on how the batch is cut",
        why="a weighted cross-entropy divides by the weights of the piece it is given",
        fix='return (F.cross_entropy(..., weight=w, reduction="sum"), '
        "w[targets].sum())",
    )


AVERAGING_RULES: dict[str, Rule] = {
    "RB401": mean_of_means,
    "RB402": class_weighted_means,
}


def _in_pieces(probe: Probe) -> bool:
    """Whether a batch is made in pieces of a loss that is a mean of something else."""
    split = probe.setup.split(probe.job)
    return split.accumulation * split.ranks > 1 and probe.coupling.mean_of_means


class _Weights(TorchFunctionMode):
    """Sees whether a mean over class weights is taken."""

    seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func in WEIGHTED_MEANS and given.get("weight") is not None:
            self.seen |= given.get("reduction") == "mean"
        return func(*args, **given)


def _class_weights(probe: Probe) -> bool:
    """Whether the loss is a cross-entropy that divides by weights of classes."""
    batch = probe.batch(probe.few)
    with evaluating(probe.model), preserved_rng(), _Weights() as weights:
        probe.job.mean_loss(probe.model, batch)
    return weights.seen


def _told(probe: Probe, *, code: str, what: str, why: str, fix: str) -> Finding | None:
    """The finding with what the pieces make of the gradient; None: next to nothing."""
    split, length = probe.setup.split(probe.job), probe.job.length
    count = min(split.batch_size, length)
    pieces = min(split.accumulation * split.ranks, count)
    size = min(split.micro_batch, count // pieces)
    seen = f"{pieces * size} examples in {pieces} pieces: the gradient is "
    try:
        off = _off(probe, pieces, size)
        seen += f"off by {off:.0%} of its length"
    except (JobError, RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        off = math.inf
        seen += "not compared, as they do not fit in memory at once"
    if off < OFF:
        return None
    if math.isnan(off):
        seen = f"pieces of {size}: in one of them nothing counts, and its mean is NaN"
    return Finding(
        code=code, severity="warning", what=what, seen=seen, why=why, fix=fix
    )


def _off(probe: Probe, pieces: int, size: int) -> float:
    """How far the mean of the pieces' gradients lies from that of the whole batch.

    Over the length of the latter; in eval mode, where dropout and BatchNorm stand
    still. The examples are read and collated once, so that padding stays the same.
    """
    count = pieces * size
    generator = torch.Generator().manual_seed(probe.job.seed)
    drawn = torch.randperm(probe.job.length, generator=generator)[:count]
    batch = probe.job.batch(drawn, probe.device)
    starts = range(0, count, size)
    cut = [select_examples(batch, [*range(s, s + size)], count) for s in starts]
    whole = _gradient(probe, [Part(batch, count)])
    apart = _gradient(probe, [Part(piece, size) for piece in cut])
    return float((apart - whole).norm() / whole.norm().clamp_min(1e-30))


def _gradient(probe: Probe, parts: Sequence[Part]) -> Float[Tensor, " parameters"]:
    """Of the mean over the parts' examples, each part by its own mean."""
    count = sum(part.count for part in parts)
    model = probe.model
    model.zero_grad(set_to_none=True)
    with (
        probe.timed(BACKWARD * count),
        evaluating(model),
        torch.enable_grad(),
        preserved_rng(),
    ):
        sum_gradients(
            model, probe.job.loss, parts, device=probe.device, divisor=float(count)
        )
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return torch.cat(gradients).double()
