"""Learning-rate schedules as plain data: a factor by examples seen, not by steps."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import whole_number

POINTS = 512  # of a smooth curve: a cosine is off by less than 5e-6 [derived]


@dataclass(frozen=True, slots=True)
class Rate:
    """A factor on the learning rate as a function of examples seen.

    Examples, because a schedule that counts steps means something else as soon as the
    batch changes.

    Args:
        examples: Where the factor is known, increasing, the first at 0.
        factors: The factor at each of them, positive or zero.
        form: ``"linear"`` between the points, or ``"steps"``: each holds to the next.

    Raises:
        SettingError: The points are no such table.

    Example:
        >>> import rightbatch as rb
        >>> rate = rb.schedules.Rate.cosine(1000, floor=0.1)
        >>> rate(0), round(rate(500), 3), rate(5000)
        (1.0, 0.55, 0.1)
        >>> rb.schedules.Rate.steps({0: 1.0, 600: 0.1})(700)
        0.1

    References:
        Loshchilov and Hutter 2017, arXiv:1608.03983 (cosine).
    """

    examples: tuple[int, ...]
    factors: tuple[float, ...]
    form: Literal["linear", "steps"] = "linear"

    def __post_init__(self) -> None:
        places, factors = self.examples, self.factors
        if self.form not in ("linear", "steps"):
            raise SettingError(
                "form must be 'linear' or 'steps'", seen=f"form={self.form!r}"
            )
        rising = all(a < b for a, b in itertools.pairwise(places))
        if not places or len(places) != len(factors) or places[0] != 0 or not rising:
            raise SettingError(
                "a rate needs examples increasing from 0, each with a factor",
                seen=f"{len(places)} places {places[:4]}, {len(factors)} factors",
                fix="Rate.steps({0: 1.0, 50_000: 0.1})",
            )
        bad = [f for f in factors if not 0 <= f < math.inf]
        if bad:
            raise SettingError(
                "a learning rate's factor must be finite and not negative",
                seen=f"factor {bad[0]}",
                fix="factors such as 1.0, 0.5, 0.1",
            )
        if max(factors) <= 0:
            raise SettingError("a rate that is always zero trains nothing")

    def __call__(self, examples: float) -> float:
        """The factor when so many examples have been seen."""
        if self.form == "steps":
            return self.factors[bisect.bisect_right(self.examples, examples) - 1]
        right = bisect.bisect_right(self.examples, examples)
        if right == len(self.examples):
            return self.factors[-1]
        x0, x1 = self.examples[right - 1], self.examples[right]
        y0, y1 = self.factors[right - 1], self.factors[right]
        return y0 + (y1 - y0) * (examples - x0) / (x1 - x0)

    def __str__(self) -> str:
        first, last, end = self.factors[0], self.factors[-1], self.examples[-1]
        way = "in steps" if self.form == "steps" else "over"
        factors = f"{first:.3g} -> {self(end / 4):.3g} -> {last:.3g}"
        return f"rate {factors} {way} {end:,} examples"

    @classmethod
    def steps(cls, factors: Mapping[int, float]) -> Rate:
        """A staircase: ``{0: 1.0, 50_000: 0.1}``."""
        places = sorted(factors)
        return cls(tuple(places), tuple(factors[i] for i in places), "steps")

    @classmethod
    def linear(cls, examples: int, *, floor: float = 0.0) -> Rate:
        """Straight from 1 to ``floor`` over so many examples."""
        whole_number(examples, "examples")
        _check_floor(floor)
        return cls((0, examples), (1.0, floor))

    @classmethod
    def cosine(cls, examples: int, *, floor: float = 0.0, warmup: int = 0) -> Rate:
        """Half a cosine from 1 to ``floor``, after a straight warm-up from near 0."""
        whole_number(examples, "examples")
        _check_floor(floor)

        def factor(seen: float) -> float:
            if seen < warmup:
                return seen / warmup
            share = (seen - warmup) / max(examples - warmup, 1)
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(share, 1)))

        return cls.of(factor, examples, also=(warmup,) if warmup else ())

    @classmethod
    def of(
        cls, factor: Callable[[float], float], examples: int, also: tuple[int, ...] = ()
    ) -> Rate:
        """Any function of examples seen, taken at 512 places and joined by lines.

        Args:
            factor: Examples seen to factor.
            examples: Where it ends; it stays at its last value from there.
            also: Further places that must be met, such as corners.
        """
        whole_number(examples, "examples")
        count = min(POINTS, examples)
        places = {round(i * examples / count) for i in range(count + 1)} | set(also)
        kept = sorted(i for i in places if 0 <= i <= examples)
        return cls(tuple(kept), tuple(float(factor(i)) for i in kept))

    @classmethod
    def from_scheduler(
        cls,
        make: Callable[[torch.optim.Optimizer], Any],
        *,
        steps: int,
        batch_size: int,
        lr: float = 1.0,
    ) -> Rate:
        """Record a torch scheduler that counts steps, for the batch it was made for.

        Args:
            make: ``optimizer ->`` a ``torch.optim.lr_scheduler`` of any kind that needs
                no metric.
            steps: How many steps of it.
            batch_size: Examples of a step it was written for.
            lr: The optimizer's rate it was written for, where it has rates of its own
                (``max_lr``, ``eta_min``).

        Raises:
            SettingError: It gives no finite rate, or none but zero.

        Example:
            >>> import torch, rightbatch as rb
            >>> def make(optimizer):
            ...     return torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.5)
            >>> rate = rb.schedules.Rate.from_scheduler(make, steps=30, batch_size=64)
            >>> rate(0), rate(640), rate(1280)
            (1.0, 0.5, 0.25)
        """
        whole_number(steps, "steps")
        whole_number(batch_size, "batch_size")
        weight = torch.nn.Parameter(torch.zeros(()))
        optimizer = torch.optim.SGD([weight], lr=lr)
        scheduler = make(optimizer)
        places, factors = [], []
        for step in range(steps):
            factor = float(optimizer.param_groups[0]["lr"]) / lr
            if not factors or factor != factors[-1]:
                places.append(step * batch_size)
                factors.append(factor)
            optimizer.step()
            scheduler.step()
        return cls(tuple(places), tuple(factors), "steps")


def _check_floor(floor: float) -> None:
    if not 0 <= floor <= 1:
        raise SettingError(
            "a decay ends between 0 and 1 of the rate it begins with",
            seen=f"floor={floor}",
            fix="floor=0.01",
        )
