"""How many examples of each stratum a batch gets."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from rightbatch.core.errors import SettingError

Counts = Int64[np.ndarray, " strata"]
MOST_LINES = 20  # of a table [assumed]


def allocate(
    wanted: Float64[np.ndarray, " strata"],
    batch_size: int,
    sizes: Counts,
    multiple: int = 1,
    least: int = 1,
) -> Counts:
    """Whole numbers near ``wanted`` shares, at least one each, that sum to the batch.

    No stratum gets more than it has; what it cannot take goes to the others in
    proportion. Rounding is by largest remainders.

    Args:
        wanted: Relative shares, any scale, none negative.
        batch_size: Examples to allocate.
        sizes: Examples in each stratum.
        multiple: Counts are multiples of this, where sizes and batch allow it.
        least: Of each stratum, where sizes and batch allow it.

    Raises:
        SettingError: There are more strata than examples in the batch, or fewer
            examples in all strata than in the batch.

    Example:
        >>> allocate(np.array([1.0, 999.0]), 256, np.array([1000, 999_000])).tolist()
        [1, 255]
    """
    if multiple > 1:
        units, rest = sizes // multiple, batch_size % multiple
        fits = len(sizes) <= batch_size // multiple <= int(units.sum())
        if fits and not rest and (units > 0).all():
            return allocate(wanted, batch_size // multiple, units) * multiple
    if batch_size < len(sizes):
        raise SettingError(
            f"a batch of {batch_size} cannot hold one of each of {len(sizes)} strata",
            seen=f"batch_size={batch_size}, {len(sizes)} strata",
            why="a stratum that a batch leaves out makes its gradient biased",
            fix=f"batch_size={len(sizes)} or more, or fewer strata; measured numbers: "
            "np.digitize(y, np.quantile(y, [0.25, 0.5, 0.75]))",
        )
    if batch_size > int(sizes.sum()):
        raise SettingError(
            f"a batch of {batch_size} is more than all strata hold",
            seen=f"batch_size={batch_size}, {int(sizes.sum())} examples",
            fix=f"batch_size={int(sizes.sum())} or less",
        )
    low = np.minimum(least, sizes)
    low = low if int(low.sum()) <= batch_size else np.ones_like(sizes)
    exact = _bounded_shares(wanted, batch_size, low, sizes)
    counts = np.floor(exact).astype(np.int64)
    # By largest remainder; one at its size or its least has none and comes last.
    while (short := batch_size - int(counts.sum())) != 0:
        move = 1 if short > 0 else -1
        free = counts < sizes if move > 0 else counts > low
        rest = np.where(free, (exact - counts) * move, -np.inf)
        counts[int(rest.argmax())] += move
    return counts


def _bounded_shares(
    wanted: np.ndarray, batch_size: int, low: Counts, high: Counts
) -> np.ndarray:
    """Shares in proportion to ``wanted`` that sum to the batch, within the limits."""
    # A stratum that nothing is wanted of gets its least, and what others cannot take.
    wanted = np.maximum(wanted / max(wanted.max(), 1e-300), 1e-9)
    # clip(scale * wanted) grows with scale: bisect for the sum.
    bottom, top = 0.0, float((high / wanted).max())
    for _ in range(200):
        middle = (bottom + top) / 2
        total = np.clip(middle * wanted, low, high).sum()
        bottom, top = (middle, top) if total < batch_size else (bottom, middle)
    return np.clip(top * wanted, low, high)


def importance_weights(sizes: Counts, counts: Counts) -> Float64[np.ndarray, " strata"]:
    r"""The weight of each stratum's examples, so that the batch mean is unbiased.

    $w_s = \pi_s B / k_s$ with $\pi_s = n_s / N$: then the mean of $w g$ over the batch
    has the mean of $g$ over the data set as its expectation.
    """
    return (sizes / sizes.sum()) * counts.sum() / counts


def batch_variance(
    sizes: Counts, counts: Counts, stds: Float64[np.ndarray, " strata"]
) -> float:
    r"""Tr Cov of a stratified batch gradient: $\sum_s \pi_s^2 \sigma_s^2 / k_s$.

    With replacement within strata (Zhao and Zhang 2014, arXiv:1405.3080). Least where
    $k_s \propto \pi_s \sigma_s$ (Neyman 1934).
    """
    shares = sizes / sizes.sum()
    return float((shares**2 * stds**2 / counts).sum())


def allocation_table(
    labels: list[Any], sizes: Counts, counts: Counts, *, weighted: bool
) -> str:
    """A line for each stratum, or for those that come around most often."""
    weights = importance_weights(sizes, counts) if weighted else np.ones(len(sizes))
    # An epoch is as many draws as there are examples.
    seen = counts / counts.sum() * sizes.sum() / sizes
    shown = np.sort(np.argsort(-seen, kind="stable")[:MOST_LINES])
    lines = ["     stratum    examples  in a batch    weight  seen in an epoch"]
    lines += [
        f"{str(labels[s])[:12]:>12}{sizes[s]:>12,}{counts[s]:>12,}{weights[s]:>10.3g}"
        f"{seen[s]:>12,.3g} times"
        for s in shown
    ]
    left = len(sizes) - len(shown)
    return "\n".join(lines + [f"and {left:,} seen no more often"] * (left > 0))
