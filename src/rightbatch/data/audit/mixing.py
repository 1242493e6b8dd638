"""How well batches are mixed: the noise of their means, relative to random ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from rightbatch.core.errors import SettingError
from rightbatch.core.estimate import Estimate

WAVES = 8  # slow waves over the data set that a batch should average out [assumed]
Batches = list[Int64[np.ndarray, " batch"]]
Features = Callable[[Any], Float64[np.ndarray, "examples features"]]


def noise_ratio(steps: list[Any], features: Features) -> Estimate:
    """Mean of B (batch mean)^2 / variance, over batches and features.

    Relative to the same draws split into batches at random: then a batch of B out of M
    draws has a mean of variance v / B (M - B) / (M - 1), whatever was drawn. So another
    composition than the data set's (weights, a subset) is no lack of mixing. The
    interval is that of a chi-squared mean.

    Args:
        steps: The examples of each batch.
        features: From examples to numbers of each, shape ``(examples, features)``.
    """
    means, sums, squares, count = [], 0.0, 0.0, 0
    for step in steps:
        values = features(step)
        means.append(values.mean(0))
        sums, squares = sums + values.sum(0), squares + np.square(values).sum(0)
        count += len(step)
    mean = np.asarray(sums) / max(count, 1)
    variance = np.asarray(squares) / max(count, 1) - mean**2
    varying = variance > 1e-9 * (1 + mean**2)
    ratios = np.array([
        len(step) * (batch_mean - mean)[varying] ** 2 / variance[varying]
        * (count - 1) / (count - len(step))
        for step, batch_mean in zip(steps, means, strict=True)
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


def shuffle_noise(steps: Batches, length: int) -> Estimate:
    """That of an example's place: cosines, slow over the data set."""
    numbers = np.arange(1, min(WAVES, length - 1) + 1)

    def waves(indices: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, "n waves"]:
        return np.cos(np.pi * ((indices + 0.5) / length)[:, None] * numbers)

    return noise_ratio(steps, waves)


def label_noise(steps: Batches, label: Int64[np.ndarray, " examples"]) -> Estimate:
    """That of the frequencies of the most frequent labels; ``label``: their numbers."""
    frequency = np.bincount(label[np.concatenate(steps)])
    most_frequent = np.argsort(-frequency, kind="stable")[:WAVES]
    return noise_ratio(
        steps, lambda i: (label[i][:, None] == most_frequent).astype(np.float64)
    )


def length_noise(steps: Batches, lengths: Int64[np.ndarray, " examples"]) -> Estimate:
    """That of the logarithm of the examples' lengths."""
    return noise_ratio(steps, lambda i: np.log(np.maximum(lengths[i], 1))[:, None])


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
    values = [np.asarray(batch, dtype=np.float64).ravel() for batch in batches]
    if not values or np.ptp(np.concatenate(values)) == 0:
        raise SettingError(
            "all examples have the same number" if values else "there are no batches",
            seen=f"{sum(map(len, values))} examples",
            why="its mean is the same in every batch, however mixed",
            fix="a number that differs: labels as integers, a time, or a length",
        )
    return noise_ratio(values, lambda v: v[:, None])
