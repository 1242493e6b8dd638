"""Whether a batch made in pieces gives the gradient of the whole; what breaks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.guards import preserved_rng, untouched
from rightbatch.core.torch_private import Dropout
from rightbatch.core.trees import repeat_examples, to_device
from rightbatch.job.loss import Loss, scalar_loss
from rightbatch.training.batch_norm import batch_norms
from rightbatch.training.gradient import HALVES, Part, sum_gradients

# Rounding of split sums in float32 stays below 1e-5, in bfloat16 below 3e-2 of the norm
# [measured: tests/training]; what breaks equality makes 0.1 and more.
EXACT, ROUGH = 1e-4, 6e-2
SAME = 1e-3  # how far the loss of doubled examples may be from the loss [assumed]
Slicing = Callable[[Any, int, int, int], Any]


@dataclass(frozen=True, slots=True)
class Equality:
    """How far the gradient of a split batch is from that of the whole one.

    Attributes:
        error: Norm of the difference over the norm of the whole gradient.
        equal: Whether that is rounding.
        causes: What makes the difference, and what to do.
        examples: Size of the batch compared.
    """

    error: float
    equal: bool
    causes: tuple[str, ...]
    examples: int

    def __str__(self) -> str:
        if self.equal:
            return f"split and whole gradient are equal ({self.error:.1e})"
        head = (
            f"a batch made in micro-batches does not give the gradient of the whole: "
            f"{self.error:.2g} of its norm differs on {self.examples} examples"
        )
        return "; ".join([head, *self.causes])


def compare(
    model: nn.Module,
    loss: Loss,
    parameters: Sequence[Tensor],
    batch: Any,
    count: int,
    slice_batch: Slicing,
    *,
    dtype: torch.dtype | None = None,
) -> Equality:
    """Differentiate a small batch whole and in two unequal pieces.

    Args:
        model: Its gradients, buffers and modes are put back.
        loss: Of the model.
        parameters: What to differentiate for.
        batch: The examples.
        count: How many.
        slice_batch: ``(batch, start, stop, count) ->`` a part of it.
        dtype: Of autocast, or None.
    """
    device = next(model.parameters()).device

    def gradient(parts: list[Part]) -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        _, counts = sum_gradients(model, loss, parts, device=device, dtype=dtype)
        made = [p.grad.flatten().double() for p in parameters if p.grad is not None]
        return torch.cat(made) / sum(float(c) for c in counts)

    def difference() -> float:
        whole = gradient([Part(batch, count)])
        first = max(1, (count * 5) // 8)
        cuts = [(0, first), (first, count)]
        parts = [Part(slice_batch(batch, a, b, count), b - a) for a, b in cuts]
        split = gradient(parts)
        return float((split - whole).norm() / whole.norm().clamp_min(1e-30))

    def mean_loss(examples: Any) -> float:
        with torch.no_grad():
            value, n = scalar_loss(loss, model, to_device(examples, device), dtype)
        return float(value) / (1.0 if n is None else float(n))

    half = dtype is not None or parameters[0].dtype in HALVES
    limit = ROUGH if half else EXACT
    with preserved_rng(), untouched(model, parameters):
        error = difference()
        if error <= limit:
            return Equality(error, True, (), count)
        causes = _causes(model, difference, limit, mean_loss, batch, count)
        return Equality(error, False, tuple(causes), count)


def _causes(
    model: nn.Module,
    difference: Callable[[], float],
    limit: float,
    mean_loss: Callable[[Any], float],
    batch: Any,
    count: int,
) -> list[str]:
    """The layers that differ while training, and the loss if it still differs after."""
    causes = []
    if any(isinstance(m, Dropout) and m.training and m.p > 0 for m in model.modules()):
        causes.append(
            "dropout draws other numbers for each piece (harmless: as random as before)"
        )
    norms = [m for m in batch_norms(model) if m.training]
    if norms:
        causes.append(
            f"{type(norms[0]).__name__} normalises each piece by itself: the "
            "micro-batch is part of the model, so keep it fixed, or use GroupNorm"
        )
    model.eval()
    if difference() <= limit:
        inside = "some layer behaves otherwise in eval mode (dropout inside)"
        return causes or [inside]
    once, again = mean_loss(batch), mean_loss(repeat_examples(batch, 2, count))
    if abs(again - once) > SAME * max(abs(once), 1e-12):
        causes.append(
            "the loss compares examples with each other (contrastive): each piece has "
            "fewer to compare with; keep the batch whole, or use a cached loss"
        )
    else:
        causes.append(
            "the loss is a mean over something else than examples (tokens, masked "
            "targets): return (sum, count) instead, and it is exact"
        )
    return causes
