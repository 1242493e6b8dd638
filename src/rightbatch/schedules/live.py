"""Schedules that follow what is measured while the run trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from rightbatch.core.arguments import whole_number
from rightbatch.core.errors import SettingError
from rightbatch.schedules.schedule import Aim, Reading, Schedule


@dataclass(frozen=True, slots=True)
class FollowNoise(Schedule):
    """The batch follows the gradient noise scale measured in the run.

    Either the optimum in time, ``sqrt(noise scale * half batch)``
    (docs/how-it-decides.md), which needs the batch at which half of a step's time is
    overhead; or a fraction of the noise scale. Both take the noise scale for the
    critical batch (McCandlish et al. 2018, arXiv:1812.06162).

    Args:
        first: The batch until the noise is known.
        half_batch: ``t0 / t1`` of the step time ``t0 + t1 B``, in examples.
        fraction: Instead: the share of the noise scale to take.
        least: The smallest batch.
        most: The largest batch.

    Raises:
        SettingError: Both or neither of ``half_batch`` and ``fraction`` are given, or
            the limits do not hold the first batch.

    Example:
        >>> str(FollowNoise(64, fraction=0.5, most=1024))
        'batch from 64, follows 0.5 x noise scale within 1 to 1,024'
    """

    live: ClassVar[bool] = True

    first: int
    half_batch: float | None = None
    fraction: float | None = None
    least: int = 1
    most: int = 1 << 40

    def __post_init__(self) -> None:
        _check_limits(self.first, self.least, self.most)
        if (self.half_batch is None) == (self.fraction is None):
            raise SettingError(
                "give half_batch or fraction: one of them",
                seen=f"half_batch={self.half_batch}, fraction={self.fraction}",
                why="they say what of the noise scale the batch is",
                fix="fraction=0.5; or half_batch, which `rightbatch tune` prints",
            )
        share = self.half_batch if self.fraction is None else self.fraction
        if share is None or not 0 < share < math.inf:
            raise SettingError(
                "half_batch or fraction must be positive",
                seen=f"half_batch={self.half_batch}, fraction={self.fraction}",
            )

    def aim(self, examples: int, reading: Reading | None = None) -> Aim | None:
        """What the noise scale asks for; None until there is one."""
        if reading is None:
            return None
        noise = reading.noise_scale
        if not (math.isfinite(noise.value) and noise.value > 0):
            return None
        return Aim(
            batch=self._clamped(noise.value),
            low=self._clamped(max(noise.low, 0.0)),
            high=self._clamped(noise.high),
            reason=f"noise scale {noise.value:.3g} ({noise.low:.3g} to "
            f"{noise.high:.3g}) asks for {self._batch(noise.value):.3g}",
        )

    def _batch(self, noise: float) -> float:
        if self.fraction is not None:
            return self.fraction * noise
        assert self.half_batch is not None
        return math.sqrt(noise * self.half_batch)

    def _clamped(self, noise: float) -> float:
        return min(max(self._batch(noise), self.least), self.most)

    @property
    def start(self) -> int:
        """The batch of the first step."""
        return self.first

    def largest(self, examples: float = math.inf) -> int:
        """The limit set."""
        return self.most

    def __str__(self) -> str:
        what = (
            f"{self.fraction:g} x noise scale"
            if self.fraction is not None
            else f"sqrt(noise scale x {self.half_batch:.3g})"
        )
        return _follows(self.first, what, self.least, self.most)


@dataclass(frozen=True, slots=True)
class SignalToNoise(Schedule):
    """The batch grows as the gradient shrinks: B proportional to 1 / |G|^2.

    It keeps the signal-to-noise ratio of a step where the noise itself stays; with a
    noise that changes too, `FollowNoise` with a fraction does. |G|^2 is the unbiased
    one: the raw norm of a batch's gradient has the noise in it and stops falling
    (docs/noise.md).

    Args:
        first: The batch at the first known |G|^2.
        least: The smallest batch.
        most: The largest batch.
    """

    live: ClassVar[bool] = True

    first: int
    least: int = 1
    most: int = 1 << 40

    def __post_init__(self) -> None:
        _check_limits(self.first, self.least, self.most)

    def aim(self, examples: int, reading: Reading | None = None) -> Aim | None:
        """What the gradient's norm asks for; None until it is known."""
        if reading is None or not reading.first_grad_norm_sq > 0:
            return None
        signal = reading.grad_norm_sq
        if not (signal.value > 0 and math.isfinite(signal.value)):
            return None

        def batch(norm_sq: float) -> float:
            grown = self.first * reading.first_grad_norm_sq / max(norm_sq, 1e-300)
            return min(max(grown, self.least), self.most)

        return Aim(
            batch=batch(signal.value),
            low=batch(signal.high),
            high=batch(signal.low),
            reason=f"|G|^2 is {signal.value / reading.first_grad_norm_sq:.3g} x its "
            "first value",
        )

    @property
    def start(self) -> int:
        """The batch of the first step."""
        return self.first

    def largest(self, examples: float = math.inf) -> int:
        """The limit set."""
        return self.most

    def __str__(self) -> str:
        return _follows(self.first, "1 / |G|^2", self.least, self.most)


def _follows(first: int, what: str, least: int, most: int) -> str:
    limits = f"{least:,} to {most:,}" if most < 1 << 40 else f"{least:,} and more"
    return f"batch from {first:,}, follows {what} within {limits}"


def _check_limits(first: int, least: int, most: int) -> None:
    for name, value in (("first", first), ("least", least), ("most", most)):
        whole_number(value, name)
    if not least <= first <= most:
        raise SettingError(
            "the first batch lies outside of its limits",
            seen=f"first={first}, least={least}, most={most}",
            fix="least <= first <= most",
        )
