"""Whether what a loss returns as ``(sum, count)`` is that."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rightbatch.core.errors import JobError
from rightbatch.core.guards import evaluating, preserved_rng, untouched
from rightbatch.core.trees import to_device
from rightbatch.job.loss import Loss, no_sum_and_count, scalar_loss
from rightbatch.training.equality import Slicing


def pair_error(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    count: int,
    slice_batch: Slicing,
    *,
    dtype: torch.dtype | None = None,
) -> JobError | None:
    """What is wrong with the pair of a loss that returns (mean loss, accuracy).

    It is called for two halves of some examples and for both, in eval mode.

    Args:
        model: Left as it is.
        loss: It returns a pair.
        batch: The examples.
        count: How many, at least 2.
        slice_batch: ``(batch, start, stop, count) ->`` a part of it.
        dtype: Of autocast, or None.

    Returns:
        The error to raise, if one value of the pair is a mean.

    Raises:
        Exception: Of the job's code, if it fails on so few examples.
    """
    device = next(model.parameters()).device

    def pair(start: int, stop: int) -> tuple[float, float]:
        part = to_device(slice_batch(batch, start, stop, count), device)
        value, terms = scalar_loss(loss, model, part, dtype)
        return float(value), float(terms or 0)

    half = count // 2
    with preserved_rng(), untouched(model, ()), evaluating(model):
        pairs = [pair(*c) for c in ((0, half), (half, 2 * half), (0, 2 * half))]
    return no_sum_and_count(*pairs)
