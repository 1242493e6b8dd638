"""Estimates of independent samples, for the claims."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from rightbatch.core.estimate import Estimate


def mean_of(samples: Sequence[float], unit: str = "") -> Estimate:
    """Their mean with Student's 95 % interval, by at least two samples.

    Example:
        >>> print(mean_of([1.0, 2.0, 3.0]))
        2 (-0.484 to 4.48)
    """
    values = np.asarray(samples, float)
    n, mean = len(values), float(values.mean())
    half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Estimate(
        value=mean, low=mean - half, high=mean + half, unit=unit, n=n, method="mean"
    )


def slope_of(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """The slope of a straight line through points, with its 95 % interval.

    Take logarithms first for an exponent.

    Example:
        >>> round(slope_of([0.0, 1.0, 2.0], [1.0, 3.1, 4.9]).value, 2)
        1.95
    """
    line = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(x) - 2) * line.stderr) if len(x) > 2 else 0.0
    value = float(line.slope)
    return Estimate(
        value=value, low=value - half, high=value + half, n=len(x), method="regression"
    )
