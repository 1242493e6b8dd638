"""One measured step as numbers: signal and noise of every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from rightbatch.noise.capture.group_norms import GroupNorms
from rightbatch.noise.guard import METRICS
from rightbatch.noise.statistics.moments import (
    concentration,
    finite_population,
    unbiased,
)
from rightbatch.noise.statistics.optimizer_metric import OptimizerMetrics

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one step said.

    Attributes:
        batch: Examples in the step.
        signal: Unbiased |G|^2 of each parameter.
        noise: Unbiased tr Sigma of each parameter.
        metrics: Signal and noise in other metrics; of the sign, gain and deviation.
        gain_batch: Examples behind the sign.
        grouped_noise: Noise of the parameters whose groups have several examples;
            depends on which examples are neighbours, if these are not independent.
    """

    batch: int
    signal: np.ndarray
    noise: np.ndarray
    metrics: dict[str, Pair] = field(default_factory=dict)
    gain_batch: int = 0
    grouped_noise: float = 0.0

    @property
    def finite(self) -> bool:
        """Whether no gradient was NaN or infinite."""
        return bool(np.isfinite([self.signal, self.noise]).all())

    @property
    def zero(self) -> bool:
        """Whether there was no gradient at all."""
        return not (self.signal.any() or self.noise.any())

    def unscaled(self, factor: float) -> Sample:
        """What a loss that was multiplied by ``factor`` would have given without."""
        if factor == 1:
            return self
        return replace(
            self,
            signal=self.signal / factor**2,
            noise=self.noise / factor**2,
            metrics={
                # The sign's gain and deviation are linear in the gradient.
                name: (a / factor, b / factor)
                if name == "sign"
                else (a / factor**2, b / factor**2)
                for name, (a, b) in self.metrics.items()
            },
            grouped_noise=self.grouped_noise / factor**2,
        )

    def without(self, parameters: Sequence[int]) -> Sample:
        """The same with nothing of these parameters."""
        if not parameters:
            return self
        kept = np.ones(len(self.signal))
        kept[list(parameters)] = 0.0
        return replace(
            self,
            signal=np.where(kept, self.signal, 0.0),
            noise=np.where(kept, self.noise, 0.0),
            metrics={
                name: (np.where(kept, a, 0.0), np.where(kept, b, 0.0))
                for name, (a, b) in self.metrics.items()
            },
        )


def sample_from_norms(
    norms: GroupNorms, parameters: int, population: int | None
) -> Sample:
    """Norms taken inside the weight gradients; parameters may be cut differently."""
    keys = list(norms.squares)
    if not keys:
        nothing = np.zeros(parameters)
        return Sample(norms.batch, nothing, nothing)
    totals = torch.stack([norms.totals[k] for k in keys])
    values = torch.cat([totals, *norms.squares.values()]).double().cpu().numpy()
    groups, total_squares = [norms.groups[k] for k in keys], values[: len(keys)]
    starts = np.cumsum([len(keys), *(g.count for g in groups[:-1])])
    part_sums = np.add.reduceat(values, starts)
    q = np.array([concentration(g.sizes) for g in groups])
    signals, noises = unbiased(part_sums, total_squares, q, norms.batch)
    if population is not None:
        signals, noises = finite_population(signals, noises, population)
    index = [k.index for k in keys]
    signal, noise = (np.bincount(index, v, parameters) for v in (signals, noises))
    several = [g.count < norms.batch for g in groups]
    return Sample(
        norms.batch, signal, noise, grouped_noise=float(noises[several].sum())
    )


def sample_from_groups(
    parts: Tensor, totals: Tensor, sizes: Sequence[int], population: int | None
) -> Sample:
    """Norms of micro-batches or ranks: the same groups for every parameter."""
    values = torch.stack([parts.double(), totals.double()]).cpu().numpy()
    q = concentration(tuple(sizes))
    signal, noise = unbiased(values[0], values[1], q, sum(sizes))
    if population is not None:
        signal, noise = finite_population(signal, noise, population)
    return Sample(sum(sizes), signal, noise)


def with_metrics(
    sample: Sample, metrics: OptimizerMetrics, rows: dict[str, tuple[Tensor, Tensor]]
) -> Sample:
    """The sample with signal and noise in the optimizer's metrics.

    Args:
        sample: The step's.
        metrics: How its groups were cut.
        rows: From `OptimizerMetrics.rows`, of all ranks if there are several.
    """
    if METRICS in metrics.guard.lost:
        return sample
    q, batch, pairs = concentration(metrics.sizes), sum(metrics.sizes), {}
    for name, row in rows.items():
        parts, totals = (t.double().cpu().numpy() for t in row)
        sign = name == "sign"
        pairs[name] = (parts, totals) if sign else unbiased(parts, totals, q, batch)
    return replace(sample, metrics=pairs, gain_batch=metrics.gain_batch)
