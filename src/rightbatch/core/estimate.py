"""A number with its interval: the only form in which a figure leaves a room."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rightbatch.core.units import show_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value, its 95 % interval, its unit and where it comes from.

    Attributes:
        value: The point estimate.
        low: Lower end of the interval; ``-inf`` where nothing bounds it.
        high: Upper end of the interval; ``inf`` where nothing bounds it.
        unit: ``"s"``, ``"bytes"``, ``"examples"``, ``""`` for a pure number.
        n: How many independent observations stand behind it (0: a constant).
        method: How value and interval were obtained, in a few words.

    Example:
        >>> step = Estimate(value=0.5, low=0.4, high=0.6, unit="s")
        >>> print(step.scale(2.0))
        1 s (0.8 to 1.2)
    """

    value: float
    low: float
    high: float
    unit: str = ""
    n: int = 0
    method: str = "exact"

    def __post_init__(self) -> None:
        if not (self.low <= self.value <= self.high):
            raise ValueError(
                f"interval {self.low} to {self.high} does not hold {self.value}"
            )

    @classmethod
    def exact(cls, value: float, unit: str = "") -> Estimate:
        """A number that is known, not measured."""
        return cls(value=value, low=value, high=value, unit=unit)

    @classmethod
    def median(cls, samples: Sequence[float], unit: str) -> Estimate:
        """The median of independent samples with its distribution-free interval.

        The interval runs between two order statistics chosen from the binomial
        distribution (Conover 1999, section 3.2); below 6 samples it is the range,
        whose coverage is lower than 95 %, and ``method`` says so.

        Raises:
            ValueError: ``samples`` is empty.
        """
        if not samples:
            raise ValueError("a median needs at least one sample")
        ordered = sorted(samples)
        n = len(ordered)
        rank = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)))
        method = "median" if n >= 6 else "median, range of few"
        return cls(
            value=float(np.median(ordered)),
            low=ordered[rank],
            high=ordered[n - 1 - rank],
            unit=unit,
            n=n,
            method=method,
        )

    @classmethod
    def from_draws(
        cls, value: float, draws: Sequence[float], *, unit: str, n: int, method: str
    ) -> Estimate:
        """A point value with the central 95 % of bootstrap or Monte-Carlo draws.

        The interval is widened to hold the value where the draws are skewed so far
        that it falls outside. Infinite draws make it unbounded.
        """
        # Order statistics, not interpolation: between inf and inf that would be NaN.
        ordered = np.sort(np.asarray(draws, float))
        cut = math.floor(0.025 * len(ordered))
        low, high = ordered[cut], ordered[len(ordered) - 1 - cut]
        return cls(
            value=value,
            low=min(float(low), value),
            high=max(float(high), value),
            unit=unit,
            n=n,
            method=method,
        )

    def map(self, f: Callable[[float], float], unit: str | None = None) -> Estimate:
        """Apply a monotone function to value and interval."""
        low, high = sorted((f(self.low), f(self.high)))
        value = f(self.value)
        return replace(
            self,
            value=value,
            low=min(low, value),
            high=max(high, value),
            unit=self.unit if unit is None else unit,
        )

    def scale(self, factor: float, unit: str | None = None) -> Estimate:
        """Multiply by an exact number."""
        return self.map(lambda x: x * factor, unit)

    @property
    def relative(self) -> float:
        """Half the interval's width over the value; ``inf`` where unbounded."""
        if self.value == 0 or not math.isfinite(self.high - self.low):
            return math.inf if self.high != self.low else 0.0
        return (self.high - self.low) / 2 / abs(self.value)

    @property
    def bounded(self) -> bool:
        """Whether both ends of the interval are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        value, low = show_number(self.value), show_number(self.low)
        if self.low == self.high and math.isfinite(self.value):
            return f"{value}{unit}"
        if not math.isfinite(self.value):
            return f"at least {low}{unit}" if math.isfinite(self.low) else "unbounded"
        high = show_number(self.high) if math.isfinite(self.high) else "no upper bound"
        return f"{value}{unit} ({low} to {high})"
