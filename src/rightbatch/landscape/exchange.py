"""The rate at which another batch is as hot, or its updates vary as much.

With the batch times r and the rate times f, temperature and way per epoch change by
f / r, the variance of one update by f^2 / r, and stability (rate times curvature) by f:
no rule keeps more than one of the three.
"""

from __future__ import annotations

from rightbatch.schedules.scaling import scaling_for


def equal_temperature(lr: float, batch: int, other: int) -> float:
    """The rate at which batch ``other`` is as hot as ``batch`` at ``lr``: linear.

    It keeps lr / B, and with it drift and noise per epoch (Smith & Le 2017,
    arXiv:1710.06451).

    Example:
        >>> equal_temperature(0.1, 64, 256)
        0.4
    """
    return lr * scaling_for("sgd", batch, other, rule="linear").lr


def equal_jitter(lr: float, batch: int, other: int) -> float:
    """The rate at which an update of batch ``other`` varies as much: the square root.

    It keeps lr^2 / B (Hoffer et al. 2017, arXiv:1705.08741).

    Example:
        >>> equal_jitter(0.1, 64, 256)
        0.2
    """
    return lr * scaling_for("sgd", batch, other, rule="sqrt").lr
