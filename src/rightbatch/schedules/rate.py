"""Learning-rate schedules as plain data: a factor by examples seen, not by steps."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from rightbatch.core.errors import SettingError
from rightbatch.core.json_io import to_plain
from rightbatch.core.whole_number import whole_number
from rightbatch.schedules.record_scheduler import scheduler_factors

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

    examples: tuple[float, ...]
    factors: tuple[float, ...]
    form: Literal["linear", "steps"] = "linear"

    def __post_init__(self) -> None:
        # As Python's numbers, whoever's they were.
        places = tuple(to_plain(i) for i in self.examples)
        factors = tuple(float(f) for f in self.factors)
        object.__setattr__(self, "examples", places)
        object.__setattr__(self, "factors", factors)
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
        way = "in steps over" if self.form == "steps" else "over"
        peak = max(self.factors)
        top = self.examples[self.factors.index(peak)]
        risen = f"{peak:.3g} (at {top:,.0f}) -> " if 0 < top < end else ""
        quarter = top + (end - top) / 4
        factors = f"{first:.3g} -> {risen}{self(quarter):.3g} -> {last:.3g}"
        return f"rate {factors} {way} {end:,.0f} examples"

    def stretched(self, factor: float) -> Rate:
        """The same shape over ``factor`` times as many examples.

        Raises:
            SettingError: The factor is not positive.

        Example:
            >>> import rightbatch as rb
            >>> rate = rb.schedules.Rate.cosine(1000, warmup=100).stretched(2.5)
            >>> rate.examples[-1], rate(125), rate(250)
            (2500.0, 0.5, 1.0)
        """
        if not 0 < factor < math.inf:
            raise SettingError(
                "a rate is stretched by a positive factor", seen=f"factor={factor}"
            )
        return replace(self, examples=tuple(i * factor for i in self.examples))

    @classmethod
    def steps(cls, factors: Mapping[int, float], *, warmup: int = 0) -> Rate:
        """A staircase, ``{0: 1.0, 50_000: 0.1}``, under a straight warm-up from 0."""
        warmup = whole_number(warmup, "warmup", least=0)
        places = sorted(factors)
        stairs = cls(tuple(places), tuple(factors[i] for i in places), "steps")
        if not warmup:
            return stairs
        corners = {0, warmup, *(i for at in places[1:] for i in (at - 1, at))}
        kept = sorted(corners)
        rising = (stairs(i) * min(1.0, i / warmup) for i in kept)
        return cls(tuple(kept), tuple(rising))

    @classmethod
    def linear(cls, examples: int, *, floor: float = 0.0, warmup: int = 0) -> Rate:
        """Straight from 1 to ``floor``, after a straight warm-up from 0.

        ``examples`` is where it ends, the warm-up included.
        """
        _check_decay(examples, floor, warmup)
        if not warmup:
            return cls((0, examples), (1.0, floor))
        return cls((0, warmup, examples), (0.0, 1.0, floor))

    @classmethod
    def cosine(cls, examples: int, *, floor: float = 0.0, warmup: int = 0) -> Rate:
        """Half a cosine from 1 to ``floor``, after a straight warm-up from 0.

        ``examples`` is where it ends, the warm-up included.
        """
        _check_decay(examples, floor, warmup)

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
        examples = whole_number(examples, "examples")
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
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Rate:
        """Record a torch scheduler that counts steps, for the batch it was made for.

        Args:
            make: ``optimizer ->`` a ``torch.optim.lr_scheduler`` of any kind that needs
                no metric.
            steps: How many steps of it.
            batch_size: Examples of a step it was written for.
            lr: The optimizer's rate it was written for, where it has rates of its own
                (``max_lr``, ``eta_min``).
            optimizer: Instead, the optimizer itself, where the scheduler asks for more
                of it; its learning rates are changed, its parameters are not.

        Raises:
            SettingError: It is no function of steps alone (it follows a metric, or
                momentum changes with it), has another rate for every param group, ends
                before so many steps, or gives no finite rate, or none but zero.
            JobError: ``make`` raised.

        Example:
            >>> import torch, rightbatch as rb
            >>> def make(optimizer):
            ...     return torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.5)
            >>> rate = rb.schedules.Rate.from_scheduler(make, steps=30, batch_size=64)
            >>> rate(0), rate(640), rate(1280)
            (1.0, 0.5, 0.25)
        """
        steps = whole_number(steps, "steps")
        batch_size = whole_number(batch_size, "batch_size")
        if optimizer is None:
            weight = torch.nn.Parameter(torch.zeros(()))
            optimizer = torch.optim.SGD([weight], lr=lr)
        factors = scheduler_factors(make, optimizer, steps)
        table: dict[int, float] = {}
        for step, factor in enumerate(factors):
            if not step or factor != factors[step - 1]:
                table[step * batch_size] = factor
        return cls.steps(table)


def _check_decay(examples: int, floor: float, warmup: int) -> None:
    whole_number(examples, "examples")
    whole_number(warmup, "warmup", least=0)
    if warmup >= examples:
        raise SettingError(
            "the warm-up is as long as the whole rate",
            seen=f"warmup={warmup:,}, examples={examples:,}",
            why="examples is where the rate ends, its warm-up included",
            fix=f"warmup={examples // 10}, or a longer rate",
        )
    if not 0 <= floor <= 1:
        raise SettingError(
            "a decay ends between 0 and 1 of the rate it begins with",
            seen=f"floor={floor}",
            fix="floor=0.01",
        )
