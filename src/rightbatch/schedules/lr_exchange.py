"""Schedules that exchange learning rate for batch, and say what they hold constant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import keep_whole_numbers
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.schedule import Aim, Reading, Schedule

# Power s in: the decayed rate f * lr at the first batch equals the rate
# f * lr * (B / B0)**s at batch B. SGD's temperature is lr / B (Smith et al. 2018,
# arXiv:1711.00489); Adam's and normalised SGD's effect is lr / sqrt(B) (Malladi et al.
# 2022, arXiv:2205.10287; Meterez et al. 2025, arXiv:2510.14717).
_POWERS = {"smith": 1.0, "seesaw": 0.5}
# What lr / B**p stays constant at, where the batch follows a rate down.
_KEPT = {"temperature": 1.0, "update-variance": 2.0}


def check_one_decay(schedule: Schedule, rate: Rate | None) -> None:
    """Refuse a rate beside a schedule that has taken one up already.

    Raises:
        SettingError: There are two.
    """
    if rate is not None and hasattr(schedule, "rate"):
        raise SettingError(
            "two learning-rate decays are given",
            seen=f"{schedule}, and {rate}",
            why="the schedule has taken one up already",
            fix="leave rate out",
        )


@dataclass(frozen=True, slots=True)
class InsteadOfDecay(Schedule):
    """Where a learning rate would have decayed, the batch grows.

    ``"smith"``, for SGD: the batch grows as the rate would have decayed and the rate
    stays, so that lr / B is at every example what the decay would have made of it.
    ``"seesaw"``, for Adam: whenever the rate would be cut by r, the batch grows by r
    and the rate is cut by sqrt(r), which keeps lr / sqrt(B). Both hold while the batch
    is below the critical one. Beyond ``most`` the rate decays by what is left. A
    warm-up of the rate stays a warm-up.

    Args:
        batch: The batch before any decay.
        rate: The decay to replace, see `Rate`.
        most: The largest batch.
        form: ``"smith"`` or ``"seesaw"``.

    Raises:
        SettingError: A batch is no batch, or ``most`` is below the first.

    Example:
        >>> import rightbatch as rb
        >>> decay = rb.schedules.Rate.steps({0: 1.0, 1000: 0.5, 2000: 0.125})
        >>> smith = rb.schedules.InsteadOfDecay(64, decay, most=256)
        >>> [(smith.aim(n).batch, smith.aim(n).rate) for n in (0, 1000, 2000)]
        [(64, 1.0), (128, 1.0), (256, 0.5)]

    References:
        Smith et al. 2018, arXiv:1711.00489; Meterez et al. 2025, arXiv:2510.14717.
    """

    rule: ClassVar[str | None] = "none"

    batch: int
    rate: Rate
    most: int
    form: Literal["smith", "seesaw"] = "smith"

    def __post_init__(self) -> None:
        keep_whole_numbers(self, "batch", "most")
        if self.form not in _POWERS:
            raise SettingError(
                "form must be 'smith' (SGD) or 'seesaw' (Adam)",
                seen=f"form={self.form!r}",
            )
        if self.most < self.batch:
            raise SettingError(
                "the batch could only shrink",
                seen=f"batch={self.batch}, most={self.most}",
                fix=f"most={8 * self.batch} or another multiple of the first batch",
            )

    @property
    def power(self) -> float:
        """Of the batch, in what the form keeps."""
        return _POWERS[self.form]

    def aim(self, examples: int, reading: Reading | None = None) -> Aim:
        """Batch and rate at this place."""
        peak = max(self.rate.factors)
        top = self.rate.examples[self.rate.factors.index(peak)]
        factor = self.rate(examples)
        decay = factor / peak
        batch, reason = self.batch, "before the decay"
        if examples >= top and decay < 1:
            grown = self.most if decay * self.most <= self.batch else self.batch / decay
            batch = max(1, round(grown))
            reason = f"the rate would be at {decay:.3g} x"
        # From the batch as it is, so that rounding changes nothing in the exchange.
        return Aim.exact(batch, reason, factor * (batch / self.batch) ** self.power)

    def largest(self, examples: float = math.inf) -> int:
        """The largest batch that is reached."""
        places = [int(i) for i in self.rate.examples if i < examples]
        last = int(min(examples, self.rate.examples[-1]))
        return max(map(self.batch_size, (*places, last)))

    def __str__(self) -> str:
        held = "lr / B" if self.form == "smith" else "lr / sqrt(B)"
        return (
            f"batch {self.batch:,} up to {self.most:,} instead of decay "
            f"({self.form}: {held} as the decay has it); {self.rate}"
        )


@dataclass(frozen=True, slots=True)
class AlongRate(Schedule):
    """The batch follows a learning rate down, so that one quantity stays constant.

    ``"temperature"``: lr / B, so B is proportional to lr: the noise per example stays.
    ``"update-variance"``: lr^2 / B, the variance of one update, so B is proportional to
    lr^2. Both *shrink* the batch while the rate decays (some texts say the opposite
    of the second). To cool down instead, see `InsteadOfDecay` and `Anneal`.

    Args:
        batch: The batch at the largest rate.
        rate: The rate, see `Rate`; it is applied too.
        keep: What stays constant.
        least: The smallest batch.

    Raises:
        SettingError: The batch would shrink below ``least`` of 1.

    Example:
        >>> import rightbatch as rb
        >>> decay = rb.schedules.Rate.steps({0: 1.0, 1000: 0.5})
        >>> [rb.schedules.AlongRate(64, decay).batch_size(n) for n in (0, 1000)]
        [64, 32]
        >>> along = rb.schedules.AlongRate(64, decay, keep="update-variance")
        >>> along.batch_size(1000)
        16

    References:
        Smith et al. 2018, arXiv:1711.00489 (lr / B as the temperature).
    """

    rule: ClassVar[str | None] = "none"

    batch: int
    rate: Rate
    keep: Literal["temperature", "update-variance"] = "temperature"
    least: int = 1

    def __post_init__(self) -> None:
        keep_whole_numbers(self, "batch", "least")
        if self.keep not in _KEPT:
            raise SettingError(
                "keep must be 'temperature' (lr / B) or 'update-variance' (lr^2 / B)",
                seen=f"keep={self.keep!r}",
            )
        lowest = min(self.rate.factors) / max(self.rate.factors)
        smallest = self.batch * lowest ** _KEPT[self.keep]
        if smallest < 0.5 and self.least == 1:
            raise SettingError(
                "the batch would shrink to less than one example",
                seen=f"{self.batch} x {lowest:.3g} ** {_KEPT[self.keep]:g} = "
                f"{smallest:.3g}",
                why=f"to keep {self.keep} constant it follows the rate down",
                fix="a rate with a floor, such as Rate.cosine(n, floor=0.1), or "
                "least=8, from which on it is no longer constant; to let the batch "
                "grow: InsteadOfDecay",
            )

    @property
    def power(self) -> float:
        """Of the batch, in what is kept: its rounding is followed by the rate."""
        return 1 / _KEPT[self.keep]

    def aim(self, examples: int, reading: Reading | None = None) -> Aim:
        """Batch and rate at this place."""
        factor = self.rate(examples)
        share = (factor / max(self.rate.factors)) ** _KEPT[self.keep]
        batch = max(self.least, round(self.batch * share), 1)
        return Aim.exact(batch, f"{self.keep} kept at rate {factor:.3g} x", factor)

    def largest(self, examples: float = math.inf) -> int:
        """The first batch, which belongs to the largest rate."""
        return self.batch

    def __str__(self) -> str:
        held = "lr / B" if self.keep == "temperature" else "lr^2 / B"
        return f"batch {self.batch:,} x so that {held} is constant; {self.rate}"
