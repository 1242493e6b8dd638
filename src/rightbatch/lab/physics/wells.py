"""A double well, and what exact theory of diffusion says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.integrate import cumulative_trapezoid, trapezoid

from rightbatch.lab.physics.chains import Array

GRID = np.linspace(-3.0, 3.0, 6001)  # beyond it no chain of these claims comes


@dataclass(frozen=True)
class DoubleWell:
    """The loss (w^2 - 1)^2 + tilt w: its left well is the deeper one.

    Attributes:
        tilt: Half the difference in depth, about.

    Example:
        >>> well = DoubleWell(0.1)
        >>> round(well.barrier, 3), round(well.gap, 3)
        (0.902, 0.2)
    """

    tilt: float

    def value(self, w: Array | float) -> Array:
        """The loss."""
        return np.asarray((np.square(w) - 1) ** 2 + self.tilt * np.asarray(w))

    def slope(self, w: Array) -> Array:
        """Its gradient."""
        return 4 * w * (w * w - 1) + self.tilt

    def curvature(self, w: float) -> float:
        """Its second derivative."""
        return 12 * w * w - 4

    @cached_property
    def places(self) -> tuple[float, float, float]:
        """Left bottom, saddle, right bottom."""
        left, saddle, right = sorted(np.roots([4, 0, -4, self.tilt]).real)
        return float(left), float(saddle), float(right)

    @property
    def barrier(self) -> float:
        """From the right bottom, the worse one, up to the saddle."""
        _, saddle, right = self.places
        return float(self.value(saddle) - self.value(right))

    @property
    def gap(self) -> float:
        """From the left bottom up to the right one."""
        left, _, right = self.places
        return float(self.value(right) - self.value(left))

    def density(self, temperature: float) -> Array:
        """Boltzmann's, exp(-U / T) / Z, on ``GRID``."""
        weight = np.exp(-(self.value(GRID) - self.value(self.places[0])) / temperature)
        return weight / trapezoid(weight, GRID)

    def left_share(self, temperature: float) -> float:
        """Boltzmann's share of the left well."""
        w = GRID
        left = w <= self.places[1]
        return float(trapezoid(self.density(temperature)[left], w[left]))

    def passage_time(self, temperature: float, *, leftwards: bool = True) -> float:
        """Mean time from one bottom to the other under dw = -U' dt + sqrt(2 T) dB.

        The first-passage integral (1 / T) int e^(U/T) int e^(-U/T), exact for any
        barrier (Gardiner 1985, "Handbook of Stochastic Methods", 5.2.7). In steps of
        gradient descent: over the learning rate.
        """
        left, _, right = self.places
        w = GRID
        value = self.value(w) - self.value(right)
        if leftwards:
            value, start, end = value[::-1], -right, -left
        else:
            start, end = left, right
        inner = cumulative_trapezoid(np.exp(-value / temperature), w, initial=0)
        between = (w >= start) & (w <= end)
        # A wait of e^400 is for ever; larger ones overflow.
        outer = np.exp(np.minimum(value / temperature, 400))[between] * inner[between]
        return float(trapezoid(outer, w[between]) / temperature)

    def kramers_time(self, temperature: float) -> float:
        """The same for high barriers (Kramers 1940), leftwards."""
        _, saddle, right = self.places
        bends = self.curvature(right) * abs(self.curvature(saddle))
        return 2 * math.pi / math.sqrt(bends) * math.exp(self.barrier / temperature)


def shares_along(
    well: DoubleWell, temperatures: Sequence[float] | Array, lr: float | Array
) -> Array:
    """The left well's share after each step, from the right bottom, by two rates.

    Each well is left at one over its mean passage time: good while temperatures change
    slowly against the time to settle within a well.

    Args:
        well: The landscape.
        temperatures: Of every step.
        lr: Learning rate; or the time of every step, where one stands for many.
    """
    heats = np.geomspace(np.min(temperatures) * 0.99, np.max(temperatures) * 1.01, 40)

    def rates(*, leftwards: bool) -> Array:
        times = [well.passage_time(float(t), leftwards=leftwards) for t in heats]
        return np.exp(-np.interp(np.log(temperatures), np.log(heats), np.log(times)))

    to_left, to_right = rates(leftwards=True), rates(leftwards=False)
    total = to_left + to_right
    keep = np.exp(-total * lr)
    share, shares = 0.0, []
    for stays, settled in zip(keep, to_left / total, strict=True):
        share = settled + (share - settled) * stays
        shares.append(share)
    return np.array(shares)
