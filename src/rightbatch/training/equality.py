"""Whether a batch made in pieces gives the gradient of the whole; what breaks it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rightbatch.core.errors import JobError
from rightbatch.core.guards import ModelState, preserved_rng, untouched
from rightbatch.core.text import first_line
from rightbatch.core.torch_private import BatchNorm, Dropout, is_out_of_memory
from rightbatch.core.trees import select_examples, to_device
from rightbatch.coupling.probe import SIDE, is_mean_of_means
from rightbatch.job.loss import scalar_loss
from rightbatch.training.batch_norm import running_norms
from rightbatch.training.gradient import HALVES, BatchGradient, Part, sum_gradients

# Rounding of split sums in float32 stays below 1e-5, in bfloat16 below 3e-2 of the norm
# [measured: tests/training]; what breaks equality makes 0.1 and more.
EXACT, ROUGH = 1e-4, 6e-2
SAME = 1e-3  # how far losses that are equal in theory may be apart [assumed]
MEANS = 1e-5  # the same for a table of them, in float32 [measured: tests/training]
ROUNDING = 1e-6  # of a buffer's sum, over that of its absolute values [assumed]
NAMED = 3  # buffers, at most
Slicing = Callable[[Any, int, int, int], Any]


@dataclass(frozen=True, slots=True)
class Equality:
    """How far the gradient of a split batch is from that of the whole one.

    Attributes:
        error: Norm of the difference over the norm of the whole gradient; NaN where a
            layer cannot be trained on so few examples (BatchNorm on one).
        equal: Whether that is rounding.
        causes: What makes the difference, or differs beside the gradient; and what to
            do.
        examples: Size of the batch compared.
    """

    error: float
    equal: bool
    causes: tuple[str, ...]
    examples: int

    def __str__(self) -> str:
        if self.equal:
            head = f"split and whole gradient are equal ({self.error:.1e})"
        elif math.isnan(self.error):
            head = f"split and whole gradient cannot be compared on {self.examples}"
        else:
            head = (
                "a batch made in micro-batches does not give the gradient of the "
                f"whole: {self.error:.2g} of its norm differs on {self.examples}"
            )
        return "; ".join([head if self.equal else f"{head} examples", *self.causes])


def compare(
    gradient: BatchGradient, batch: Any, count: int, slice_batch: Slicing
) -> Equality | None:
    """Differentiate a small batch whole and in two unequal pieces.

    The model's gradients, buffers, modes and all other state are put back.

    Args:
        gradient: Whose model, loss and parameters are looked at.
        batch: The examples.
        count: How many, at least 2.
        slice_batch: ``(batch, start, stop, count) ->`` a part of it.

    Returns:
        None if these examples have no gradient to compare: no targets, none that
        reaches a weight, or numbers that are not finite.

    Raises:
        Exception: Of the job's code, if it fails on so few examples in eval mode too.
    """
    model, parameters = gradient.ranks.network, gradient.parameters
    half = gradient.dtype is not None or any(p.dtype in HALVES for p in parameters)
    limit = ROUGH if half else EXACT
    with (
        preserved_rng(),
        untouched(model, parameters, _weights(model, parameters)) as state,
    ):
        both = _Both(gradient, batch, count, slice_batch, state)
        trouble, difference = "", math.nan
        try:
            difference = both.difference()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            trouble = first_line(error)
        if difference is None:
            return None
        moving = both.moving
        if difference <= limit:
            return Equality(difference, True, moving, count)
        causes = [*_by_type(model), *moving]
        both.evaluating = True
        evaluated = both.difference()
        if evaluated is None or math.isnan(evaluated):
            return None
        if evaluated > limit:
            try:
                causes.append(both.of_the_loss(ROUGH if half else SAME))
            except JobError:  # only ``split=`` can cut it, or two examples are too few
                causes.append("the loss is no mean over examples")
        if not causes:
            causes.append(trouble or "some layer behaves otherwise in eval mode")
        return Equality(difference, False, tuple(causes), count)


@dataclass
class _Both:
    """The same examples as a whole and in pieces, as often as is asked for."""

    of: BatchGradient
    batch: Any
    count: int
    slice_batch: Slicing
    state: ModelState
    evaluating: bool = False
    moving: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.model = self.of.ranks.network

    def difference(self) -> float | None:
        """Between both gradients, over the norm of the whole; None: there is none."""
        whole = self._gradient([Part(self.batch, self.count)])
        if whole is None:
            return None
        after = _marks(self.model)
        first = (self.count * 5) // 8
        cuts = [(0, first), (first, self.count)]
        split = self._gradient([Part(self._cut(a, b), b - a) for a, b in cuts])
        self.moving = _moving(after, _marks(self.model))
        norm = _norm(whole)
        if not norm > 0:
            return None if norm == 0 else math.nan
        if split is None:
            return 1.0
        return _norm([_minus(a, b) for a, b in zip(whole, split, strict=True)]) / norm

    def of_the_loss(self, same: float) -> str:
        """What it is about the loss, in eval mode, that pieces do not add up."""
        with torch.no_grad():
            half = self.count // 2
            (one, pair), (again, _) = (self._mean(self._cut(0, half)) for _ in range(2))
            if abs(one - again) > same * abs(one):
                return (
                    "the loss draws random numbers in eval mode too: other ones for "
                    "each piece (harmless: as random as before)"
                )
            other, both = (
                self._mean(self._cut(a, b))[0]
                for a, b in ((half, 2 * half), (0, 2 * half))
            )
            if abs(both - one - other) <= same * abs(both):
                return (
                    "the loss is a sum over examples, not a mean: return its mean, or "
                    "(loss.sum(), count)"
                )
            if self._compares(one, same):
                return (
                    "the loss compares examples with each other (contrastive): each "
                    "piece has fewer to compare with; keep the batch whole, or use a "
                    "cached loss"
                )
        if pair:
            return "what the loss sums or counts depends on the rest of the batch"
        return (
            "the loss is a mean over something else than examples (tokens, masked "
            "targets, weights of classes): return (sum, count) instead, and it is exact"
        )

    def _compares(self, one: float, same: float) -> bool:
        """Whether the mean loss of examples depends on which others are beside them.

        As in `rightbatch.coupling.probe`; with too few examples for that, whether it
        changes when every example is there twice.
        """
        if self.count < 2 * SIDE:
            half = self.count // 2
            return abs(self._beside([*range(half)] * 2) - one) > same * abs(one)
        sides = range(SIDE)
        chosen = [[[i, SIDE + j] for j in sides] for i in sides]
        table = np.array([[self._beside(pair) for pair in row] for row in chosen])
        tolerance = (MEANS if same == SAME else same) * float(abs(table).max())
        return not (np.isfinite(table).all() and is_mean_of_means(table, tolerance))

    def _cut(self, start: int, stop: int) -> Any:
        return self.slice_batch(self.batch, start, stop, self.count)

    def _beside(self, indices: list[int]) -> float:
        """The mean loss of these examples beside each other."""
        return self._mean(select_examples(self.batch, indices, self.count))[0]

    def _begin(self) -> None:
        self.state.restore()
        if self.evaluating:
            self.model.eval()

    def _gradient(self, parts: list[Part]) -> list[Tensor | None] | None:
        """Of the mean over all parts, parameter by parameter; None: there is none."""
        self._begin()
        parameters = self.of.parameters
        for parameter in (*self.model.parameters(), *parameters):
            parameter.grad = None
        passes = sum_gradients(
            self.model, self.of.loss, parts, device=self.of.device, dtype=self.of.dtype
        )
        count = sum(float(c) for c in passes.counts)
        if not passes.reached or not count > 0:
            return None
        return [None if p.grad is None else p.grad / count for p in parameters]

    def _mean(self, examples: Any) -> tuple[float, bool]:
        """The mean loss, and whether it came as a pair."""
        self._begin()
        batch = to_device(examples, self.of.device)
        value, count = scalar_loss(self.of.loss, self.model, batch, self.of.dtype)
        return float(value) / (float(count or 0) or 1.0), count is not None


def _weights(model: nn.Module, parameters: Sequence[Tensor]) -> list[Tensor]:
    """What a forward pass might write to and is small enough to be kept.

    Frozen weights may be a teacher that follows by a running mean (no larger than what
    it follows), or a large model under a small adapter (which stays as it is).
    """
    trained = {id(p): p for p in parameters}
    frozen = [p for p in model.parameters() if id(p) not in trained]
    fits = sum(p.nbytes for p in frozen) <= sum(p.nbytes for p in trained.values())
    return [*trained.values(), *(frozen if fits else ())]


def _by_type(model: nn.Module) -> list[str]:
    """What layers are known to do while training."""
    causes = []
    if any(isinstance(m, Dropout) and m.training and m.p > 0 for m in model.modules()):
        causes.append(
            "dropout draws other numbers for each piece (harmless: as random as before)"
        )
    norms = (m for m in model.modules() if isinstance(m, BatchNorm))
    names = [type(m).__name__ for m in norms if m.training or m.running_mean is None]
    if names:
        causes.append(
            f"{names[0]} normalises each piece by itself: the micro-batch is part of "
            "the model, so keep it fixed, or use GroupNorm"
        )
    return causes


def _marks(model: nn.Module) -> dict[str, tuple[float, float]]:
    """What tells each buffer and frozen weight from itself changed; not corrected ones.

    Corrected are the running statistics of `running_norms`.
    """
    corrected = {id(b) for m in running_norms(model) for b in m.buffers()}
    frozen = ((n, p) for n, p in model.named_parameters() if not p.requires_grad)
    marks = {}
    for name, tensor in (*model.named_buffers(), *frozen):
        if id(tensor) not in corrected:
            wide = torch.float32 if tensor.device.type == "mps" else torch.float64
            plain = tensor.detach()
            plain = torch.view_as_real(plain) if plain.is_complex() else plain
            plain = plain.to(wide)
            marks[name] = (float(plain.sum()), float(plain.abs().sum()))
    return marks


def _moving(
    after: dict[str, tuple[float, float]], split: dict[str, tuple[float, float]]
) -> tuple[str, ...]:
    """Named: what two pieces leave otherwise than one batch does."""
    names = [
        name
        for name, (total, size) in split.items()
        if name not in after or abs(total - after[name][0]) > ROUNDING * size
    ]
    if not names:
        return ()
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"the forward pass changes {', '.join(names[:NAMED])}{more} (buffers or frozen "
        "weights): each piece does so again, not once a step; only running statistics "
        "of normalisations are corrected: change it outside of forward, once a step",
    )


def _minus(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Their difference; what is None is zero."""
    if first is None or second is None:
        return second if first is None else first
    return first - second


def _norm(gradients: Sequence[Tensor | None]) -> float:
    """Of all of them as one vector."""
    norms = []
    for gradient in gradients:
        if gradient is not None:
            values = gradient.coalesce().values() if gradient.is_sparse else gradient
            wide = values.float() if values.dtype in HALVES else values
            norms.append(float(torch.linalg.vector_norm(wide)))
    return math.hypot(*norms)
