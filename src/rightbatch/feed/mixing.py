"""How well batches are mixed: the noise of their means, relative to random ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from rightbatch.errors import SettingError
from rightbatch.estimate import Estimate

WAVES = 8  # slow waves over the data set that a batch should average out [assumed]
Batches = list[Int64[np.ndarray, " batch"]]


def waves(length: int) -> Any:
    """Functions of an example's place: orthonormal cosines, mean zero."""

    def values(index: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, "n waves"]:
        place = (index + 0.5) / length
        waves = np.arange(1, min(WAVES, length - 1) + 1)
        return np.sqrt(2.0) * np.cos(np.pi * place[:, None] * waves)

    return values


def ratio_of(steps: Batches, values: Any, length: int) -> Estimate:
    """Mean of B (batch mean)^2 / variance, over batches and functions.

    The functions have mean 0 and variance 1 over the data set. Without replacement a
    random batch gives (N - B) / (N - 1); the interval is that of a chi-squared mean.
    """
    found = []
    for step in steps:
        expected = max((length - len(step)) / max(length - 1, 1), 1e-9)
        if len(step) >= length:
            continue
        means = values(step).mean(0)
        found.append(len(step) * means**2 / expected)
    if not found:
        return Estimate.exact(1.0)
    ratios = np.array(found)
    value, count = float(ratios.mean()), ratios.size
    low, high = stats.chi2.ppf([0.025, 0.975], count)
    return Estimate(
        value=value,
        low=min(value, value * count / float(high)),
        high=max(value, value * count / float(low)),
        n=len(found),
        method="variance of batch means over that of random batches",
    )


def mixing_of(batches: list[Any]) -> Estimate:
    """The shuffle-noise ratio of any loader, from a number of each of its examples.

    For loaders without indices: give what changes slowly over the data as it is read,
    such as its label or time. 1 is ideal, the batch size is no mixing at all.

    Args:
        batches: Of every batch, one number per example, shape ``(batch,)``.

    Raises:
        SettingError: All numbers are the same.

    Example:
        >>> mixing_of([np.zeros(4), np.ones(4)]).value
        4.0
    """
    values = [np.asarray(b, dtype=np.float64) for b in batches]
    everything = np.concatenate(values)
    mean, spread = float(everything.mean()), float(everything.std())
    if spread == 0:
        raise SettingError(
            "all examples have the same number",
            seen=f"{len(everything)} times {mean:.4g}",
            why="its mean is the same in every batch, however mixed",
        )
    scaled = [(v - mean) / spread for v in values]
    return ratio_of(scaled, lambda v: v[:, None], 1 << 62)


def by_label(
    steps: Batches, names: np.ndarray, inverse: np.ndarray, length: int
) -> tuple[Estimate, dict[str, float]]:
    """Mixing of the labels, and each one's share relative to the data set's."""
    share = np.bincount(inverse) / length
    kept = np.flatnonzero((share > 0) & (share < 1))

    def values(index: np.ndarray) -> np.ndarray:
        hot = (inverse[index][:, None] == kept).astype(np.float64)
        return (hot - share[kept]) / np.sqrt(share[kept] * (1 - share[kept]))

    in_batches = np.bincount(inverse[np.concatenate(steps)], minlength=len(names))
    relative = in_batches / in_batches.sum() / share
    composition = {
        str(n): float(r) for n, r in zip(names.tolist(), relative, strict=True)
    }
    if not len(kept):
        return Estimate.exact(1.0), composition
    if len(kept) > WAVES:  # the most frequent ones tell enough
        kept = kept[np.argsort(-share[kept])[:WAVES]]
    return ratio_of(steps, values, length), composition
