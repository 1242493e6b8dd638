"""One measured step as numbers: signal and noise of every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rightbatch.noise.capture.group_norms import Tally
from rightbatch.noise.statistics.moments import (
    concentration,
    finite_population,
    unbiased,
)
from rightbatch.noise.statistics.optimizer_metric import Lens

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one step said.

    Attributes:
        batch: Examples in the step.
        signal: Unbiased |G|^2 of each parameter.
        noise: Unbiased tr Sigma of each parameter.
        total: Squared norm of the batch's gradient, of each parameter.
        metrics: Signal and noise in other metrics; of the sign, gain and deviation.
        gain_batch: Examples behind the sign.
        between: Noise of the parameters whose groups have several examples; depends
            on which examples are neighbours, if these are not independent.
    """

    batch: int
    signal: np.ndarray
    noise: np.ndarray
    total: np.ndarray
    metrics: dict[str, Pair] = field(default_factory=dict)
    gain_batch: int = 0
    between: float = 0.0

    @property
    def finite(self) -> bool:
        """Whether no gradient was NaN or infinite."""
        both = np.concatenate([self.signal, self.noise, self.total])
        return bool(np.isfinite(both).all())

    @property
    def zero(self) -> bool:
        """Whether there was no gradient at all."""
        return not self.total.any()


def from_tally(tally: Tally, count: int, population: int | None) -> Sample:
    """Norms taken inside the weight gradients; parameters may be cut differently."""
    signal, noise, total = (np.zeros(count) for _ in range(3))
    keys, between = list(tally.squares), 0.0
    if keys:
        squares = torch.cat([tally.squares[k] for k in keys])
        wholes = torch.stack([tally.totals[k] for k in keys])
        values = torch.cat([squares, wholes]).double().cpu().numpy()
        groups = [tally.groups[k] for k in keys]
        starts = np.cumsum([0, *(g.count for g in groups[:-1])])
        parts = np.add.reduceat(values[: len(squares)], starts)
        whole = values[len(squares) :]
        q = np.array([g.concentration for g in groups])
        one, other = unbiased(parts, whole, q, tally.batch)
        if population is not None:
            one, other = finite_population(one, other, population)
        index = [k.index for k in keys]
        np.add.at(signal, index, one)
        np.add.at(noise, index, other)
        np.add.at(total, index, whole)
        several = [g.count < tally.batch for g in groups]
        between = float(other[several].sum())
    return Sample(tally.batch, signal, noise, total, between=between)


def from_groups(
    parts: Tensor, totals: Tensor, sizes: Sequence[int], population: int | None
) -> Sample:
    """Norms of micro-batches or ranks: the same groups for every parameter."""
    values = torch.stack([parts.double(), totals.double()]).cpu().numpy()
    signal, noise = unbiased(values[0], values[1], concentration(sizes), sum(sizes))
    if population is not None:
        signal, noise = finite_population(signal, noise, population)
    return Sample(sum(sizes), signal, noise, values[1])


def metric_pairs(
    lens: Lens, found: dict[str, tuple[Tensor, Tensor]], scale: float
) -> dict[str, Pair]:
    """Signal and noise in every metric the lens saw."""
    pairs = {}
    for name, (first, second) in found.items():
        parts = first.double().cpu().numpy()
        totals = second.double().cpu().numpy()
        if name == "sign":
            pairs[name] = parts / scale, totals / scale
        else:
            signal, noise = unbiased(
                parts, totals, concentration(lens.sizes), sum(lens.sizes)
            )
            pairs[name] = signal / scale**2, noise / scale**2
    return pairs
