"""How well batches are mixed: the noise of their means, relative to random ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from rightbatch.core.errors import SettingError
from rightbatch.core.estimate import Estimate

WAVES = 8  # slow waves over the data set that a batch should average out [assumed]
Batches = list[Int64[np.ndarray, " batch"]]


def waves(length: int) -> Any:
    """Functions of an example's place: cosines, slow over the data set."""

    def values(index: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, "n waves"]:
        place = (index + 0.5) / length
        waves = np.arange(1, min(WAVES, length - 1) + 1)
        return np.cos(np.pi * place[:, None] * waves)

    return values


def ratio_of(steps: Batches, values: Any) -> Estimate:
    """Mean of B (batch mean)^2 / variance, over batches and functions.

    Relative to the same draws dealt to batches at random: then a batch of B out of M
    draws has a mean of variance v / B (M - B) / (M - 1), whatever was drawn. So another
    composition than the data set's (weights, a subset) is no lack of mixing. The
    interval is that of a chi-squared mean.
    """
    means, sums, squares, count = [], 0.0, 0.0, 0
    for step in steps:
        found = values(step)
        means.append(found.mean(0))
        sums, squares = sums + found.sum(0), squares + np.square(found).sum(0)
        count += len(step)
    mean = np.asarray(sums) / max(count, 1)
    variance = np.asarray(squares) / max(count, 1) - mean**2
    kept = variance > 1e-9 * (1 + mean**2)  # the others are constant
    ratios = np.array([
        len(step) * (own[kept] - mean[kept]) ** 2 / variance[kept]
        * (count - 1) / (count - len(step))
        for step, own in zip(steps, means, strict=True)
        if len(step) < count
    ])  # fmt: skip
    if not ratios.size:
        return Estimate.exact(1.0)
    value = float(ratios.mean())
    low, high = stats.chi2.ppf([0.025, 0.975], ratios.size)
    return Estimate(
        value=value,
        low=min(value, value * ratios.size / float(high)),
        high=max(value, value * ratios.size / float(low)),
        n=len(ratios),
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
        >>> round(mixing_of([np.full(4, float(day)) for day in range(100)]).value, 2)
        4.03
    """
    try:
        values = [np.asarray(b, dtype=np.float64).ravel() for b in batches]
    except (TypeError, ValueError) as error:
        raise SettingError(
            "mixing is measured by one number of each example",
            seen=str(error),
            fix="labels as integers, a time, or a length",
        ) from error
    values = [v for v in values if len(v)]
    if not values or np.ptp(np.concatenate(values)) == 0:
        raise SettingError(
            "all examples have the same number" if values else "there are no batches",
            seen=f"{sum(map(len, values))} examples",
            why="its mean is the same in every batch, however mixed",
        )
    return ratio_of(values, lambda v: v[:, None])


def by_label(
    steps: Batches, names: np.ndarray, inverse: np.ndarray, length: int
) -> tuple[Estimate, dict[str, float]]:
    """Mixing of the labels, and each one's share relative to the data set's."""
    share = np.bincount(inverse) / length
    in_batches = np.bincount(inverse[np.concatenate(steps)], minlength=len(names))
    relative = in_batches / in_batches.sum() / share
    composition = {
        str(n): float(r) for n, r in zip(names.tolist(), relative, strict=True)
    }
    # The most frequent ones tell enough.
    kept = np.argsort(-in_batches, kind="stable")[:WAVES]

    def values(index: np.ndarray) -> np.ndarray:
        return (inverse[index][:, None] == kept).astype(np.float64)

    return ratio_of(steps, values), composition
