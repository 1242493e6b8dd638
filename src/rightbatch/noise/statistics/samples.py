"""One measured step as numbers: signal and noise of every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from rightbatch.noise.capture.group_norms import GroupNorms
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
        return Sample(
            self.batch,
            self.signal / factor**2,
            self.noise / factor**2,
            {
                # The sign's gain and deviation are linear in the gradient.
                name: (a / factor, b / factor)
                if name == "sign"
                else (a / factor**2, b / factor**2)
                for name, (a, b) in self.metrics.items()
            },
            self.gain_batch,
        )


def sample_from_norms(
    norms: GroupNorms, parameters: int, population: int | None
) -> Sample:
    """Norms taken inside the weight gradients; parameters may be cut differently."""
    signal, noise = np.zeros(parameters), np.zeros(parameters)
    keys, grouped_noise = list(norms.squares), 0.0
    if keys:
        squares = torch.cat([norms.squares[k] for k in keys])
        totals = torch.stack([norms.totals[k] for k in keys])
        values = torch.cat([squares, totals]).double().cpu().numpy()
        groups = [norms.groups[k] for k in keys]
        starts = np.cumsum([0, *(g.count for g in groups[:-1])])
        part_sums = np.add.reduceat(values[: len(squares)], starts)
        q = np.array([concentration(g.sizes) for g in groups])
        total_squares = values[len(squares) :]
        signals, noises = unbiased(part_sums, total_squares, q, norms.batch)
        if population is not None:
            signals, noises = finite_population(signals, noises, population)
        index = [k.index for k in keys]
        np.add.at(signal, index, signals)
        np.add.at(noise, index, noises)
        several = [g.count < norms.batch for g in groups]
        grouped_noise = float(noises[several].sum())
    return Sample(norms.batch, signal, noise, grouped_noise=grouped_noise)


def sample_from_groups(
    parts: Tensor, totals: Tensor, sizes: Sequence[int], population: int | None
) -> Sample:
    """Norms of micro-batches or ranks: the same groups for every parameter."""
    values = torch.stack([parts.double(), totals.double()]).cpu().numpy()
    signal, noise = unbiased(values[0], values[1], concentration(sizes), sum(sizes))
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
    q, batch, pairs = concentration(metrics.sizes), sum(metrics.sizes), {}
    for name, row in rows.items():
        parts, totals = (t.double().cpu().numpy() for t in row)
        sign = name == "sign"
        pairs[name] = (parts, totals) if sign else unbiased(parts, totals, q, batch)
    return replace(sample, metrics=pairs, gain_batch=metrics.gain_batch)
