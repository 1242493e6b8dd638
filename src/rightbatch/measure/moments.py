"""From the Gram matrix of group gradients to signal, noise and an honest interval."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy import stats

from rightbatch.estimate import Estimate
from rightbatch.measure.record import NoiseMoments


def moments(
    gram: Float[np.ndarray, "groups groups"], group_size: int
) -> tuple[float, float]:
    r"""Unbiased $|G|^2$ and $\mathrm{tr}\,\Sigma$ from inner products of gradients.

    With $K_{ij} = \langle g_i, g_j \rangle$ over independent groups of $m$ examples,
    $E K_{ij} = |G|^2$ off the diagonal and $E K_{ii} = |G|^2 + \mathrm{tr}\,\Sigma/m$
    on it (McCandlish et al. 2018, arXiv:1812.06162, appendix A.1).

    Args:
        gram: Inner products of the group-mean gradients, shape (groups, groups).
        group_size: Examples in each group.
    """
    groups = len(gram)
    diagonal = float(np.trace(gram)) / groups
    signal = (float(gram.sum()) - groups * diagonal) / (groups * (groups - 1))
    return signal, group_size * (diagonal - signal)


def jackknife_moments(
    gram: Float[np.ndarray, "groups groups"], group_size: int
) -> NoiseMoments:
    """Both moments with their delete-one jackknife covariance.

    Raises:
        ValueError: Fewer than 3 groups, from which nothing can be left out.
    """
    groups = len(gram)
    if groups < 3:
        raise ValueError(f"a jackknife needs 3 groups, got {groups}")
    signal, trace = moments(gram, group_size)
    keep = ~np.eye(groups, dtype=bool)
    without = np.array([moments(gram[np.ix_(mask, mask)], group_size) for mask in keep])
    spread = without - without.mean(axis=0)
    covariance = (groups - 1) / groups * spread.T @ spread
    return NoiseMoments(
        grad_norm_sq=signal,
        trace=trace,
        var_grad_norm_sq=float(covariance[0, 0]),
        var_trace=float(covariance[1, 1]),
        covariance=float(covariance[0, 1]),
    )


def noise_scale_of(found: NoiseMoments, groups: int, group_size: int) -> Estimate:
    """The ratio trace / |G|^2 with Fieller's 95 % interval (Fieller 1954).

    Where the signal is not separated from zero the ratio has no upper bound, and the
    lower one is that of the noise over the upper one of the signal. Where the signal's
    estimate is not even positive, the value is infinite too.
    """
    a, g = found.trace, found.grad_norm_sq
    t_sq = float(stats.t.ppf(0.975, groups - 1)) ** 2
    # {r : (a - r g)^2 <= t^2 Var(a - r g)} is a quadratic in r.
    square = g * g - t_sq * found.var_grad_norm_sq
    half = a * g - t_sq * found.covariance
    constant = a * a - t_sq * found.var_trace
    root = math.sqrt(max(half * half - square * constant, 0.0))
    value = a / g if g > 0 else math.inf
    if g > 0 and square > 0:
        low, high = (half - root) / square, (half + root) / square
    else:
        t = math.sqrt(t_sq)
        most = max(g, 0.0) + t * math.sqrt(found.var_grad_norm_sq)
        low = (a - t * math.sqrt(found.var_trace)) / most if most > 0 else 0.0
        high = math.inf
    return Estimate(
        value=value,
        low=min(max(low, 0.0), value),
        high=max(high, value),
        unit="examples",
        n=groups * group_size,
        method=f"{groups} groups of {group_size}, Fieller",
    )
