"""Noise of a gradient that compares examples: a part in 1/b, and one of pairs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from rightbatch.core.errors import JobError, SettingError, UnidentifiedError
from rightbatch.core.estimate import Estimate
from rightbatch.core.guards import preserved_rng, untouched
from rightbatch.core.trees import example_count, slice_batch
from rightbatch.job.loss import Loss, check_differentiable, scalar_loss
from rightbatch.noise.statistics.optimizer_metric import optimizer_metric

LEAST_BLOCKS = 4  # of which one at a time can be left out [assumed]
DRAWS = 400  # of what the sub-batches leave open


@dataclass(frozen=True, kw_only=True)
class PairNoise:
    r"""How the noise of a gradient falls with a batch whose examples are compared.

    $\mathrm{Var}(b)/|G_b|^2 = V_1/b + V_2/(b(b-1))$. Of a mean over pairs these are
    Hoeffding's (1948) two parts over $|G|^2$: $V_1$ holds the positives and what a
    negative does on average, $V_2$ what only a pair of two does. InfoNCE is no mean
    over pairs: with few negatives its signal $|G_b|^2$ is smaller as well. That falls
    about as a pair's noise does, and is in $V_2$: fitted at 8 and 64, batches of 16 to
    128 had up to 1.4 x what the fit says [measured on ``contrastive_digits``, Adam].
    Both grow along a run; intervals are those of the moment measured.

    Attributes:
        v1: $V_1$ in examples, the noise scale of large batches.
        v2: $V_2$ in examples squared; see ``pairs_told``.
        signal: $|G_b|^2$ at the largest size.
        sizes: Of the sub-batches it was measured at.
        relative: $\mathrm{Var}(b)/|G_b|^2$ at each of them.
        draws: $V_1$ and $V_2$ as they may be, shape (draws, 2); none is negative.
    """

    v1: Estimate
    v2: Estimate
    signal: Estimate
    sizes: tuple[int, ...]
    relative: tuple[Estimate, ...]
    draws: Float64[np.ndarray, "draws 2"] = field(repr=False)

    @property
    def pairs_told(self) -> bool:
        """Whether the noise of pairs is seen at all: 95 % sure that it is not zero."""
        return self.v2.low > 0

    def at(self, batch_size: float) -> float:
        """Variance of the gradient over its signal at a batch, by the fit."""
        pairs = batch_size * (batch_size - 1)
        return max(self.v1.value, 0.0) / batch_size + max(self.v2.value, 0.0) / pairs

    def __str__(self) -> str:
        told = "" if self.pairs_told else ", not told from zero"
        return f"V1 {self.v1}, V2 {self.v2}{told}"


def pair_noise(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    *,
    sizes: Sequence[int] = (8, 64),
    optimizer: torch.optim.Optimizer | None = None,
) -> PairNoise:
    """Measure $V_1$ and $V_2$ from one batch, cut into sub-batches.

    The batch is cut into blocks of the largest size, and each of them into pieces of
    every smaller one; the variance among pieces of a size is that of a batch of it.
    Intervals come from leaving out one block at a time, since blocks alone are
    independent: with $k$ of them Student's with $k - 1$ degrees of freedom, drawn for
    signal and variance apart, their ratio formed last. As many gradients as there are
    blocks and sizes are in memory at once.

    Args:
        model: In the mode it trains in; left as it is.
        loss: ``loss(model, batch)``, as a `Job` has it: a mean over examples.
        batch: At least four times the largest size; its examples in random order.
        sizes: Each a multiple of the one before, the smallest at least 2.
        optimizer: Where it divides by the gradient's size (Adam), noise and signal are
            in its metric, as its steps feel them.

    Raises:
        SettingError: The sizes do not divide each other, or the batch is too small.
        JobError: A gradient is not finite, or there is none.
        UnidentifiedError: The gradient's signal is not even positive.

    Example:
        >>> import torch
        >>> def loss(model, batch):
        ...     one, other = (torch.nn.functional.normalize(model(x)) for x in batch)
        ...     close = one @ other.T / 0.1
        ...     pairs = torch.arange(len(close))
        ...     return torch.nn.functional.cross_entropy(close, pairs)
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(512, 16)
        >>> noise = pair_noise(torch.nn.Linear(16, 8), loss, (x, x + 0.5))
        >>> noise.sizes, noise.v1.low > 0
        ((8, 64), True)

    References:
        Hoeffding 1948, "A class of statistics with asymptotically normal distribution".
    """
    count, sizes = example_count(batch), tuple(sizes)
    largest = max((1, *sizes))
    blocks = count // largest
    starts = range(0, blocks * largest, largest)
    cut = (slice_batch(batch, a, a + largest, count) for a in starts)
    return noise_of_blocks(model, loss, cut, blocks, sizes=sizes, optimizer=optimizer)


def noise_of_blocks(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    blocks: int,
    *,
    sizes: tuple[int, ...],
    optimizer: torch.optim.Optimizer | None = None,
    dtype: torch.dtype | None = None,
) -> PairNoise:
    """As `pair_noise`, from independent batches of the largest size, made one by one.

    Args:
        model: As there.
        loss: As there.
        batches: Of the largest size, on the model's device.
        blocks: How many there are.
        sizes: As there.
        optimizer: As there.
        dtype: Of autocast, or None.

    Raises:
        SettingError: As there.
        JobError: As there.
        UnidentifiedError: As there.
    """
    _check(sizes, blocks)
    parameters = [p for p in model.parameters() if p.requires_grad]
    metric = None if optimizer is None else optimizer_metric(optimizer, parameters)
    roots = None if metric is None else [m.sqrt() for m in metric]

    def gradient(piece: Any) -> Tensor:
        value, terms = scalar_loss(loss, model, piece, dtype)
        check_differentiable(value.requires_grad)
        mean = value if terms is None else value / terms
        parts = torch.autograd.grad(mean, parameters, materialize_grads=True)
        if roots is not None:
            parts = [part * root for part, root in zip(parts, roots, strict=True)]
        return torch.cat([part.flatten() for part in parts])

    sums: list[list[Tensor]] = [[] for _ in sizes]
    squares = np.zeros((len(sizes), blocks))
    with preserved_rng(), untouched(model, parameters):
        for number, block in enumerate(batches):
            for place, size in enumerate(sizes):
                total, squares[place, number] = _summed(
                    gradient, block, size, sizes[-1]
                )
                sums[place].append(total)
    with np.errstate(all="ignore"):  # what is not finite is told below
        moments = [
            _moments(torch.stack(s), q, sizes[-1] // size)
            for s, q, size in zip(sums, squares, sizes, strict=True)
        ]
    values = np.array(moments).transpose(2, 1, 0)  # (1 + blocks, 2, sizes)
    if not np.isfinite(values).all():
        raise JobError(
            "a gradient is not finite",
            seen=f"sub-batches of {', '.join(map(str, sizes))} examples",
            why="no noise can be measured there",
            fix="a lower learning rate, or a check of the data for NaN",
        )
    return _fitted(sizes, values)


def _check(sizes: tuple[int, ...], blocks: int) -> None:
    """Refuse sizes that do not divide each other, and too few blocks.

    Raises:
        SettingError: So it is.
    """
    nested = all(b > a > 1 and b % a == 0 for a, b in itertools.pairwise(sizes))
    if len(sizes) < 2 or not nested:
        raise SettingError(
            "sizes must be two or more, each a multiple of the one before",
            seen=f"sizes={sizes}",
            why="small sub-batches are pieces of large ones; V1 and V2 need two sizes",
            fix="sizes=(8, 64)",
        )
    if blocks < LEAST_BLOCKS:
        raise SettingError(
            f"the batch holds {blocks} sub-batches of {sizes[-1]} examples, fewer than "
            f"{LEAST_BLOCKS}",
            seen=f"sizes={sizes}",
            why="the interval leaves out one of them at a time",
            fix=f"{LEAST_BLOCKS * sizes[-1]} examples or more, or smaller sizes",
        )


def _summed(
    gradient: Callable[[Any], Tensor], block: Any, size: int, whole: int
) -> tuple[Tensor, float]:
    """The sum of a block's gradients at a size, and of their squared norms."""
    total, squares = None, 0.0
    for start in range(0, whole, size):
        piece = gradient(slice_batch(block, start, start + size, whole))
        squares += float(piece @ piece)
        total = piece if total is None else total.add_(piece)
    assert total is not None, "a block holds a piece at least"
    return total, squares


def _moments(sums: Tensor, squares: np.ndarray, pieces: int) -> np.ndarray:
    """Signal and variance of sub-batches, of all blocks, then without each: (2, 1 + k).

    Args:
        sums: Of each block's gradients, shape (k, parameters).
        squares: Sum of their squared norms, shape (k,).
        pieces: Gradients in a block.
    """
    blocks = len(squares)
    gram = (sums @ sums.T).double().cpu().numpy()
    whole = gram.sum() - np.append(0.0, 2 * gram.sum(1) - gram.diagonal())
    trace = squares.sum() - np.append(0.0, squares)
    count = pieces * (blocks - np.append(0.0, np.ones(blocks)))
    signal = (whole - trace) / (count * (count - 1))
    return np.stack([signal, trace / count - signal])


def _fitted(sizes: tuple[int, ...], values: np.ndarray) -> PairNoise:
    """V1 and V2 with their intervals.

    Args:
        sizes: Of the sub-batches.
        values: Signals and variances of all blocks, then without each block, shape
            (1 + blocks, 2, sizes).

    Raises:
        UnidentifiedError: A signal is not positive.
    """
    blocks, width = len(values) - 1, len(sizes)
    signal, variance = values[0]
    if not (signal > 0).all():
        raise UnidentifiedError(
            "the gradient's signal cannot be told from its noise",
            seen=f"|G|^2 = {signal.min():.3g} by {blocks} blocks of {sizes[-1]}",
            why="V1 and V2 are counted in it",
            fix="more examples, or a later moment of training",
        )
    b = np.array(sizes, float)
    weight = signal / np.maximum(variance, 1e-12 * signal)  # errors count relatively
    shape = np.stack([1 / b, 1 / (b * (b - 1))], 1) * weight[:, None]
    solve = np.linalg.pinv(shape) * weight
    spread = (values[1:] - values[1:].mean(0)).reshape(blocks, 2 * width)
    random = np.random.default_rng(0)
    # With covariance (k - 1)/k S'S, the jackknife's, whatever its rank.
    normal = random.standard_normal((DRAWS, blocks)) @ spread
    normal *= np.sqrt((blocks - 1) / blocks)
    student = np.sqrt(random.chisquare(blocks - 1, (DRAWS, 1)) / (blocks - 1))
    drawn = values[0] + (normal / student).reshape(DRAWS, 2, width)
    told = (drawn[:, 0] > 0).all(1)
    ratios = drawn[told, 1] / drawn[told, 0]
    lost = np.full((DRAWS - int(told.sum()), 2), np.inf)  # no signal, all noise
    draws = np.concatenate([ratios @ solve.T, lost])
    method = f"sub-batches of {', '.join(map(str, sizes))}, jackknife of {blocks}"

    def estimate(value: float, drawn: np.ndarray, unit: str) -> Estimate:
        return Estimate.from_draws(
            float(value), drawn.tolist(), unit=unit, n=blocks, method=method
        )

    v1, v2 = solve @ (variance / signal)
    sides = np.concatenate([ratios, np.full((len(lost), width), np.inf)])
    return PairNoise(
        v1=estimate(v1, draws[:, 0], "examples"),
        v2=estimate(v2, draws[:, 1], "examples^2"),
        signal=estimate(signal[-1], drawn[:, 0, -1], ""),
        sizes=sizes,
        relative=tuple(
            estimate(variance[i] / signal[i], sides[:, i], "") for i in range(width)
        ),
        draws=np.maximum(draws, 0.0),
    )
