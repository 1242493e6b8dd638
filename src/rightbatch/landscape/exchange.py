"""What stays the same when batch and learning rate change together."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from rightbatch.core.real_number import real_number
from rightbatch.schedules.scaling import scaling_for


@dataclass(frozen=True, slots=True)
class Exchange:
    """Factors on what SGD does, as batch and learning rate are multiplied.

    Attributes:
        temperature: lr / B.
        update_variance: Noise of one update, lr^2 / B.
        drift_per_epoch: Way down the gradient, lr / B.
        noise_per_epoch: Variance gathered over an epoch of updates, lr^2 / B^2.
        stability: lr times curvature: at 2 SGD diverges.
    """

    temperature: float
    update_variance: float
    drift_per_epoch: float
    noise_per_epoch: float
    stability: float

    @property
    def constant(self) -> tuple[str, ...]:
        """Names of what stays."""
        factors = {f.name: getattr(self, f.name) for f in fields(self)}
        return tuple(n for n, f in factors.items() if math.isclose(f, 1.0))


def held_constant(batch_factor: float, lr_factor: float) -> Exchange:
    """What follows from a batch and a learning rate multiplied by these factors.

    Raises:
        SettingError: A factor is not positive.

    Example:
        >>> held_constant(4, 4).constant
        ('temperature', 'drift_per_epoch', 'noise_per_epoch')
        >>> held_constant(4, 2).constant
        ('update_variance',)

    References:
        Smith & Le 2017, arXiv:1710.06451; Hoffer et al. 2017, arXiv:1705.08741.
    """
    r = real_number(batch_factor, "batch_factor", positive=True)
    f = real_number(lr_factor, "lr_factor", positive=True)
    return Exchange(f / r, f**2 / r, f / r, (f / r) ** 2, f)


def equal_temperature(lr: float, batch: int, other: int) -> float:
    """The rate at which batch ``other`` is as hot as ``batch`` at ``lr``: linear.

    Example:
        >>> equal_temperature(0.1, 64, 256)
        0.4
    """
    return lr * scaling_for("sgd", batch, other, rule="linear").lr


def equal_jitter(lr: float, batch: int, other: int) -> float:
    """The rate at which an update of batch ``other`` varies as much: the square root.

    Example:
        >>> equal_jitter(0.1, 64, 256)
        0.2
    """
    return lr * scaling_for("sgd", batch, other, rule="sqrt").lr
