"""A double well with SGD in it, and what the exact theory of diffusion says of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.integrate import cumulative_trapezoid, trapezoid

from rightbatch.lab.physics.chains import (
    Array,
    Batches,
    Rng,
    batch_noise,
    batches_of,
    looked_at,
    walk,
)
from rightbatch.schedules.schedule import Schedule

GRID = np.linspace(-3.0, 3.0, 6001)  # beyond it no chain of these claims comes


@dataclass(frozen=True)
class DoubleWell:
    """The loss (w^2 - 1)^2 + tilt w, whose left well is the deeper, and SGD's numbers.

    Attributes:
        tilt: Half the difference in depth, about.
        noise: Variance of one example's gradient.
        lr: Learning rate.

    Example:
        >>> well = DoubleWell(0.1, 200.0)
        >>> round(well.barrier, 3), round(well.gap, 3), well.heat(8)
        (0.902, 0.2, 0.25)
    """

    tilt: float
    noise: float
    lr: float = 0.02

    def heat(self, batch: float) -> float:
        """The temperature lr sigma^2 / (2 m)."""
        return self.lr * self.noise / (2 * batch)

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

    def left_share(self, temperature: float) -> float:
        """Boltzmann's share of the left well."""
        left, saddle, _ = self.places
        w = GRID
        weight = np.exp(-(self.value(w) - self.value(left)) / temperature)
        return float(weight[w < saddle].sum() / weight.sum())

    def passage_time(self, temperature: float, *, leftwards: bool = True) -> float:
        """Mean time from one bottom to the other under dw = -U' dt + sqrt(2 T) dB.

        (1 / T) int e^(U/T) int e^(-U/T), exact for any barrier (Gardiner 1985,
        "Handbook of Stochastic Methods", 5.2.7). Over the learning rate: in steps.
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

    def passage_steps(self, batch: float) -> float:
        """Mean steps of SGD from the right bottom to the left one."""
        return self.passage_time(self.heat(batch)) / self.lr

    def trapped(
        self, rng: Rng, batches: Batches, shape: int | tuple[int, ...]
    ) -> Iterator[Array]:
        """Chains of SGD that begin at the right bottom."""
        noise = batch_noise(rng, self.noise, batches)
        return walk(np.full(shape, self.places[2]), self.slope, self.lr, noise)

    def under(
        self, rng: Rng, schedules: Sequence[Schedule], chains: int, looks: Sequence[int]
    ) -> Array:
        """Where such chains are under schedules: (looks, schedules, chains)."""
        batches = np.array([batches_of(s, max(looks)) for s in schedules])
        shape = (len(schedules), chains)
        return looked_at(self.trapped(rng, iter(batches.T[:, :, None]), shape), looks)

    def shares_along(self, batches: Array, spans: float | Array = 1.0) -> Array:
        """The left well's share of such chains after each step, by two rates.

        Each well is left at one over its mean passage time: good while the batch moves
        slowly against the time to settle within a well. A batch may stand for many
        steps: ``spans``.
        """
        here = self.heat(1) / batches
        heats = np.geomspace(here.min() * 0.99, here.max() * 1.01, 40)

        def rates(*, leftwards: bool) -> Array:
            times = [self.passage_time(float(t), leftwards=leftwards) for t in heats]
            return np.exp(-np.interp(np.log(here), np.log(heats), np.log(times)))

        to_left, to_right = rates(leftwards=True), rates(leftwards=False)
        total = to_left + to_right
        stays = zip(np.exp(-total * self.lr * spans), to_left / total, strict=True)
        shares = [0.0]
        for stay, settled in stays:
            shares.append(settled + (shares[-1] - settled) * stay)
        return np.array(shares[1:])
