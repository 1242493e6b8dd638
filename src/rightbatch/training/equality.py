"""Whether a batch made in pieces gives the gradient of the whole; what breaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.guards import preserved_rng
from rightbatch.core.trees import repeat_examples
from rightbatch.training.batch_norm import batch_norms

# Rounding of split sums in float32 stays below 1e-5, in bfloat16 below 3e-2 of the norm
# [measured: tests/test_accumulate.py]; what breaks equality makes 0.1 and more.
EXACT, ROUGH = 1e-4, 6e-2
SAME = 1e-3  # how far the loss of doubled examples may be from the loss [assumed]
Loss = Callable[[Any], tuple[Tensor, "Tensor | float | None"]]
Cutter = Callable[[Any, int, int, int], Any]


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
    loss: Loss,
    model: nn.Module,
    parameters: Sequence[Tensor],
    batch: Any,
    count: int,
    cutter: Cutter,
    *,
    rough: bool = False,
) -> Equality:
    """Differentiate a small batch whole and in two unequal pieces.

    Args:
        loss: ``batch -> (value, count)`` of the model.
        model: Its gradients, buffers and modes are put back.
        parameters: What to differentiate for.
        batch: The examples.
        count: How many.
        cutter: ``(batch, start, stop, count) ->`` a part of it.
        rough: Whether passes are made in half precision.
    """

    def difference() -> float:
        whole = _gradient(loss, parameters, [(batch, count)])
        first = max(1, (count * 5) // 8)
        parts = [(0, first), (first, count)]
        pieces = [(cutter(batch, a, b, count), b - a) for a, b in parts]
        split = _gradient(loss, parameters, pieces)
        return float((split - whole).norm() / whole.norm().clamp_min(1e-30))

    with preserved_rng(), _untouched(model, parameters):
        error = difference()
        limit = ROUGH if rough else EXACT
        if error <= limit:
            return Equality(error, True, (), count)
        causes = _causes(model, difference, limit, loss, batch, count)
        return Equality(error, False, tuple(causes), count)


def _causes(
    model: nn.Module,
    difference: Callable[[], float],
    limit: float,
    loss: Loss,
    batch: Any,
    count: int,
) -> list[str]:
    """Switch one suspect after the other off, until the difference is gone."""
    causes = []
    dropouts = [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0
    ]
    norms = [m for m in batch_norms(model) if m.training]
    for module in dropouts:
        module.eval()
    if dropouts:
        causes.append(
            "dropout draws other numbers for each piece (harmless: as random as before)"
        )
        if difference() <= limit:
            return causes
    for module in norms:
        module.eval()
    if norms:
        causes.append(
            f"{type(norms[0]).__name__} normalises each piece by itself: the "
            "micro-batch is part of the model, so keep it fixed, or use GroupNorm"
        )
        if difference() <= limit:
            return causes
    model.eval()  # attention's own dropout, and the like
    if difference() <= limit:
        return [*causes, "some layer behaves otherwise in eval mode (dropout inside)"]
    once = _mean(loss, batch)
    again = _mean(loss, repeat_examples(batch, 2, count))
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


def _gradient(
    loss: Loss, parameters: Sequence[Tensor], pieces: list[tuple[Any, int]]
) -> Tensor:
    """Of the sum of losses over the count of all pieces, as one vector in double."""
    for parameter in parameters:
        parameter.grad = None
    total = 0.0
    for piece, examples in pieces:
        value, count = loss(piece)
        if count is None:
            value, count = value * examples, float(examples)
        if value.requires_grad:
            value.backward()
        total += float(count)
    found = [p.grad.flatten().double() for p in parameters if p.grad is not None]
    return torch.cat(found) / total if found else torch.zeros(1)


def _mean(loss: Loss, batch: Any) -> float:
    with torch.no_grad():
        value, count = loss(batch)
    return float(value) / (1.0 if count is None else float(count))


@contextmanager
def _untouched(model: nn.Module, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Gradients, buffers and modes are as before on leaving."""
    gradients = [p.grad for p in parameters]
    buffers = [(b, b.clone()) for b in model.buffers()]
    modes = [(m, m.training) for m in model.modules()]
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, copy in buffers:
                buffer.copy_(copy)
        for module, mode in modes:
            module.training = mode
