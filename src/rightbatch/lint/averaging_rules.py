"""The loss as an average: what becomes of it where a batch is made in pieces."""

from __future__ import annotations

import math

import torch

from rightbatch.core.findings import Finding
from rightbatch.core.torch_private import is_out_of_memory
from rightbatch.core.trees import select_examples
from rightbatch.lint.comparisons import apart, class_losses
from rightbatch.lint.probe import Probe, Rule
from rightbatch.training.gradient import Part

OFF = 0.01  # of the gradient's length: less is not reported [assumed]


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

    ``CrossEntropyLoss(weight=w)`` divides by the sum of the weights of the targets in
    the piece it is given: a piece without the rare class counts as much as one that
    holds it. With one example in 20 of a class that weighs 20 times the other the
    gradient of 64 in pieces of 4 is off by more than its own length [measured: median
    of 15 draws, tests/lint/bugs].

    Fix: return ``(sum, count)``: the sum of all terms and how many there are; with
    class weights the sum of the weights. `rb.train` and `rb.Accumulator` divide once,
    by the count of the whole batch over all ranks.

    Not seen: a batch made at once on one rank, examples that all have as many terms,
    and a loss that draws random numbers in eval mode.
    """
    split, length = probe.setup.split(probe.job), probe.job.length
    if split.accumulation * split.ranks < 2 or not probe.coupling.mean_of_means:
        return None
    count = min(split.batch_size, length)
    pieces = min(split.accumulation * split.ranks, count)
    size = min(split.micro_batch, count // pieces)
    seen = f"{pieces * size} examples in {pieces} pieces: the gradient is "
    try:
        off = _off(probe, pieces, size)
        seen += f"off by {off:.0%} of its length"
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        off = math.inf
        seen += "not compared, as they do not fit in memory at once"
    if off < OFF:
        return None
    if math.isnan(off):
        seen = f"pieces of {size}: in one of them nothing counts, and its mean is NaN"
    weighted = any(class_losses(probe))
    return Finding(
        code="RB401",
        severity="warning",
        what="what a class weighs depends on how the batch is cut"
        if weighted
        else "the mean of the pieces' means is not the mean of the batch",
        seen=seen,
        why="a weighted cross-entropy divides by the weights of the piece it is given"
        if weighted
        else "the loss divides by what each piece holds (tokens, unmasked targets), so "
        "a term counts more in a piece with few of them",
        fix='return (F.cross_entropy(..., weight=w, reduction="sum"), w[targets].sum())'
        if weighted
        else "return (sum of the terms, number of terms); in a loop of your own, "
        "divide every piece's sum by the count of the whole batch",
    )


AVERAGING_RULES: dict[str, Rule] = {"RB401": mean_of_means}


def _off(probe: Probe, pieces: int, size: int) -> float:
    """How far the mean of the pieces' gradients lies from that of the whole batch.

    Over the length of the latter; in eval mode, where dropout and BatchNorm stand
    still; 0 where random numbers are drawn. The examples are read and collated once,
    so that padding stays the same.
    """
    count = pieces * size
    generator = torch.Generator().manual_seed(probe.job.seed)
    drawn = torch.randperm(probe.job.length, generator=generator)[:count]
    batch = probe.job.batch(drawn, probe.device)
    whole, random = probe.gradient([Part(batch, count)], training=False)
    if random:
        return 0.0
    starts = range(0, count, size)
    cut = [select_examples(batch, [*range(s, s + size)], count) for s in starts]
    parts = [Part(piece, size) for piece in cut]
    return apart(probe.gradient(parts, training=False)[0], whole).share
