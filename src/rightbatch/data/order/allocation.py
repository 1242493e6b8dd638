"""How many examples of each stratum a batch gets."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from rightbatch.core.errors import SettingError

Counts = Int64[np.ndarray, " strata"]
MOST_LINES = 20


def allot(
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
        batch_size: What to hand out.
        sizes: Examples in each stratum.
        multiple: Counts are multiples of this, where sizes and batch allow it.
        least: Of each stratum, where sizes and batch allow it.

    Raises:
        SettingError: There are more strata than examples in the batch, or fewer
            examples in all strata than in the batch.

    Example:
        >>> allot(np.array([1.0, 999.0]), 256, np.array([1000, 999_000])).tolist()
        [1, 255]
    """
    if multiple > 1:
        units, rest = sizes // multiple, batch_size % multiple
        fits = len(sizes) <= batch_size // multiple <= int(units.sum())
        if fits and not rest and (units > 0).all():
            return allot(wanted, batch_size // multiple, units) * multiple
    if batch_size < len(sizes):
        raise SettingError(
            f"a batch of {batch_size} cannot hold one of each of {len(sizes)} strata",
            seen=f"batch_size={batch_size}, {len(sizes)} strata",
            why="a stratum that a batch leaves out makes its gradient biased",
            fix=f"batch_size={len(sizes)} or more, or fewer strata: "
            "Strata.by_quantiles, if the labels are measured numbers",
        )
    if batch_size > int(sizes.sum()):
        raise SettingError(
            f"a batch of {batch_size} is more than all strata hold",
            seen=f"batch_size={batch_size}, {int(sizes.sum())} examples",
            fix=f"batch_size={int(sizes.sum())} or less",
        )
    low = np.minimum(least, sizes)
    low = low if int(low.sum()) <= batch_size else np.ones_like(sizes)
    exact = _filled(np.asarray(wanted, dtype=np.float64), batch_size, low, sizes)
    counts = np.floor(exact).astype(np.int64)
    # By largest remainder; one at its size or its least has none and comes last.
    while (short := batch_size - int(counts.sum())) != 0:
        move = 1 if short > 0 else -1
        free = counts < sizes if move > 0 else counts > low
        rest = np.where(free, (exact - counts) * move, -np.inf)
        counts[int(rest.argmax())] += move
    return counts


def _filled(
    wanted: np.ndarray, batch_size: int, least: Counts, sizes: Counts
) -> np.ndarray:
    """Shares in proportion to ``wanted``, between the least and the stratum's size."""
    low, high = least.astype(np.float64), sizes.astype(np.float64)
    # A stratum that nothing is wanted of gets its one, and what others cannot take.
    wanted = np.maximum(wanted / max(wanted.max(), 1e-300), 1e-9)
    # shares(scale) = clip(scale * wanted) grows with scale: bisect for the sum.
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


def composition_table(
    labels: list[Any], sizes: Counts, counts: Counts, *, weighted: bool
) -> str:
    """A line for each stratum, or for the `MOST_LINES` that come around most often."""
    weights = importance_weights(sizes, counts) if weighted else np.ones(len(sizes))
    # An epoch is as many draws as there are examples.
    seen = counts / counts.sum() * sizes.sum() / sizes
    often = np.sort(np.argsort(-seen, kind="stable")[:MOST_LINES])
    rows = [("stratum", "examples", "in a batch", "weight", "seen in an epoch")]
    rows += [
        (
            str(labels[s]),
            f"{sizes[s]:,}",
            f"{counts[s]:,}",
            f"{weights[s]:.3g}",
            f"{seen[s]:,.3g} times" if seen[s] < 100 else f"{seen[s]:,.0f} times",
        )
        for s in often
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
    left = len(sizes) - len(often)
    return "\n".join(lines) + (f"\nand {left:,} seen no more often" if left else "")
