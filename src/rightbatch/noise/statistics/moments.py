"""Signal and noise from squared norms, and an honest interval for their ratio."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from rightbatch.core.estimate import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseMoments:
    """Signal and noise of the gradient in one metric, with their covariance.

    Attributes:
        grad_norm_sq: Unbiased estimate of the squared norm of the mean gradient.
        trace: Unbiased estimate of the trace of the per-example covariance.
        var_grad_norm_sq: Variance of ``grad_norm_sq``.
        var_trace: Variance of ``trace``.
        covariance: Covariance of the two.
    """

    grad_norm_sq: float
    trace: float
    var_grad_norm_sq: float
    var_trace: float
    covariance: float


@functools.cache
def concentration(sizes: tuple[int, ...]) -> float:
    """Sum of the squared shares of groups of these sizes; 1 / k for k equal ones."""
    batch = sum(sizes)
    return sum((m / batch) ** 2 for m in sizes)


def unbiased(
    parts: np.ndarray, total: np.ndarray, q: np.ndarray | float, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    r"""$|G|^2$ and $\mathrm{tr}\,\Sigma$ from one batch cut into groups.

    The batch gradient is a sum of parts $w_j$, one for each group of $m_j$ examples.
    With $q = \sum_j (m_j/B)^2$,
    $E\sum_j|w_j|^2 = q|G|^2 + \mathrm{tr}\,\Sigma/B$ and
    $E|\sum_j w_j|^2 = |G|^2 + \mathrm{tr}\,\Sigma/B$: two equations, solved without
    clipping (McCandlish et al. 2018, arXiv:1812.06162, appendix A.1, is the case of
    equal groups).

    Args:
        parts: $\sum_j |w_j|^2$, any shape.
        total: $|\sum_j w_j|^2$, same shape.
        q: `concentration` of the groups' sizes; below 1.
        batch: Examples in all.

    Returns:
        Signal and noise, in the shape given; either may be negative by chance.

    Example:
        >>> signal, noise = unbiased(np.array(6.0), np.array(4.0), 0.5, 2)
        >>> float(signal), float(noise)
        (-4.0, 16.0)
    """
    with np.errstate(invalid="ignore"):  # infinite gradients are sorted out later
        signal = (total - parts) / (1 - q)
        return signal, batch * (parts - q * total) / (1 - q)


def finite_population(
    signal: np.ndarray, noise: np.ndarray, population: int
) -> tuple[np.ndarray, np.ndarray]:
    r"""The same of the data set itself, where a batch never repeats an example.

    Drawn without replacement from $N$, two examples are negatively correlated,
    $\mathrm{Cov} = -\Sigma/(N-1)$ (Cochran 1977, theorem 2.2), so the estimates above
    aim at $|G|^2 - \mathrm{tr}\,\Sigma/(N-1)$ and $\mathrm{tr}\,\Sigma\,N/(N-1)$.
    """
    with np.errstate(invalid="ignore"):
        return signal + noise / population, noise * (population - 1) / population


def jackknife_moments(
    squares: Float[np.ndarray, " groups"],
    crosses: Float[np.ndarray, " groups"],
    group_size: int,
) -> NoiseMoments:
    """Both moments of equal groups, with their delete-one jackknife covariance.

    Args:
        squares: Squared norm of each group's mean gradient.
        crosses: Its inner product with the sum of all of them.
        group_size: Examples in a group.

    Raises:
        ValueError: Fewer than 3 groups, from which nothing can be left out.
    """
    groups = len(squares)
    if groups < 3:
        raise ValueError(f"a jackknife needs 3 groups, got {groups}")

    def both(trace: np.ndarray, whole: np.ndarray, k: int) -> np.ndarray:
        diagonal = trace / k
        signal = (whole - trace) / (k * (k - 1))
        return np.stack([signal, group_size * (diagonal - signal)], -1)

    trace, whole = squares.sum(), crosses.sum()
    signal, noise = both(trace, whole, groups)
    without = both(trace - squares, whole - 2 * crosses + squares, groups - 1)
    spread = without - without.mean(axis=0)
    covariance = (groups - 1) / groups * spread.T @ spread
    return _moments(signal, noise, covariance)


def sampled_moments(
    signal: Float[np.ndarray, " samples"],
    noise: Float[np.ndarray, " samples"],
    weights: Float[np.ndarray, " samples"],
) -> NoiseMoments:
    """Weighted means of independent samples, with the covariance of these means.

    With fewer than two samples the variances are infinite.
    """
    share = weights / weights.sum()
    values = np.stack([signal, noise])
    mean = values @ share
    spread = (values - mean[:, None]) * share
    return moments_of(mean[0], mean[1], spread @ spread.T, len(share))


def moments_of(
    signal: float, noise: float, spread: Float[np.ndarray, "2 2"], samples: int
) -> NoiseMoments:
    """Weighted means, from the products of the samples' weighted deviations from them.

    With fewer than two samples the variances are infinite.
    """
    covariance = np.diag([math.inf, math.inf])
    if samples > 1:
        covariance = spread * samples / (samples - 1)
    return _moments(signal, noise, covariance)


def _moments(signal: float, noise: float, covariance: np.ndarray) -> NoiseMoments:
    return NoiseMoments(
        grad_norm_sq=float(signal),
        trace=float(noise),
        var_grad_norm_sq=float(covariance[0, 0]),
        var_trace=float(covariance[1, 1]),
        covariance=float(covariance[0, 1]),
    )


def quantile(samples: int) -> float:
    """Student's 97.5 % quantile for an interval from so many samples."""
    return float(stats.t.ppf(0.975, max(samples - 1, 1)))


def mean_estimate(
    value: float, variance: float, *, samples: int, method: str
) -> Estimate:
    """A mean with Student's 95 % interval."""
    half = quantile(samples) * math.sqrt(variance)
    low, high = (-math.inf, math.inf) if samples < 2 else (value - half, value + half)
    return Estimate(value=value, low=low, high=high, n=samples, method=method)


def ratio(
    moments: NoiseMoments, *, samples: int, n: int, method: str, unit: str = "examples"
) -> Estimate:
    """The ratio trace / |G|^2 with Fieller's 95 % interval (Fieller 1954).

    Where the signal is not separated from zero the ratio has no upper bound, and the
    lower one is that of the noise over the upper one of the signal. Where the signal's
    estimate is not even positive, the value is infinite too.

    Args:
        moments: Of signal and noise.
        samples: Independent samples behind their variances (sets Student's t).
        n: Observations to state in the answer.
        method: How they were obtained.
        unit: Unit of the ratio.
    """
    a, g = moments.trace, moments.grad_norm_sq
    value = max(a, 0.0) / g if g > 0 else math.inf
    if samples < 2:
        return Estimate(
            value=value, low=0.0, high=math.inf, unit=unit, n=n, method=method
        )
    t_sq = quantile(samples) ** 2
    # {r : (a - r g)^2 <= t^2 Var(a - r g)} is a quadratic in r.
    square = g * g - t_sq * moments.var_grad_norm_sq
    half = a * g - t_sq * moments.covariance
    constant = a * a - t_sq * moments.var_trace
    root = math.sqrt(max(half * half - square * constant, 0.0))
    if g > 0 and square > 0:
        low, high = (half - root) / square, (half + root) / square
    else:
        t = math.sqrt(t_sq)
        most = max(g, 0.0) + t * math.sqrt(moments.var_grad_norm_sq)
        low = (a - t * math.sqrt(moments.var_trace)) / most if most > 0 else 0.0
        high = math.inf
    return Estimate(
        value=value,
        low=min(max(low, 0.0), value),
        high=max(high, value),
        unit=unit,
        n=n,
        method=method,
    )
