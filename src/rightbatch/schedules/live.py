"""Schedules that follow what is measured while the run trains."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import keep_whole_numbers
from rightbatch.schedules.schedule import Aim, Reading, Schedule

UNLIMITED = 1 << 40  # examples: no limit


@dataclass(frozen=True, slots=True)
class _Live(Schedule):
    """A batch that follows measurements, within limits."""

    live: ClassVar[bool] = True

    first: int
    least: int = field(default=1, kw_only=True)
    most: int = field(default=UNLIMITED, kw_only=True)

    def __post_init__(self) -> None:
        keep_whole_numbers(self, "first", "least", "most")
        if not self.least <= self.first <= self.most:
            raise SettingError(
                "the first batch lies outside of its limits",
                seen=f"first={self.first}, least={self.least}, most={self.most}",
                fix="least <= first <= most",
            )

    @property
    def start(self) -> int:
        """The batch of the first step."""
        return self.first

    def largest(self, examples: float = math.inf) -> int:
        """The limit set."""
        return self.most

    def _within(self, batch: float) -> float:
        return min(max(batch, self.least), self.most)

    def _described(self, quantity: str) -> str:
        most = "and more" if self.most == UNLIMITED else f"to {self.most:,}"
        limits = f"{self.least:,} {most}"
        return f"batch from {self.first:,}, follows {quantity} within {limits}"


@dataclass(frozen=True, slots=True)
class FollowNoise(_Live):
    """The batch follows the gradient noise scale measured in the run.

    Either the optimum in time, ``sqrt(noise scale * half batch)``, which needs the
    batch at which half of a step's time is overhead; or a fraction of the noise scale.
    Both take the noise scale, times ``calibration``, for the critical batch.

    Where `tune` can be asked, its fixed batch is as good: on six jobs with a known best
    batch the noise's rise along a run left 0.5 to 4 % of the time to gain. What it is
    for is a run longer than what was tuned, or one that cannot be tuned. Begin at a
    plan's batch and rate with ``least`` that batch, so that it only grows: as
    ``schedule="noise"`` beside a plan does. Not for runs of fewer than some 500 steps,
    nor for steps of a few milliseconds, which measuring makes slower than it can gain.

    Args:
        first: The batch until the noise is known.
        half_batch: ``t0 / t1`` of the step time ``t0 + t1 B``, in examples.
        fraction: Instead: the share of the noise scale to take.
        calibration: The critical batch over the noise scale, as
            `rightbatch.sweep.branch_probe` measures it; the noise scale is multiplied
            by it.
        least: The smallest batch.
        most: The largest batch.

    Raises:
        SettingError: Both or neither of ``half_batch`` and ``fraction`` are given, the
            calibration is not positive, or the first batch is outside of the limits.

    Example:
        >>> import rightbatch as rb
        >>> str(rb.schedules.FollowNoise(64, fraction=0.5, most=1024))
        'batch from 64, follows 0.5 x noise scale within 1 to 1,024'

    References:
        McCandlish et al. 2018, arXiv:1812.06162.
    """

    half_batch: float | None = None
    fraction: float | None = None
    calibration: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        _Live.__post_init__(self)
        seen = f"half_batch={self.half_batch}, fraction={self.fraction}"
        shares = [s for s in (self.half_batch, self.fraction) if s is not None]
        if len(shares) != 1:
            raise SettingError(
                "give half_batch or fraction: one of them",
                seen=seen,
                why="they say what of the noise scale the batch is",
                fix="fraction=0.5; or half_batch, which `rightbatch tune` prints",
            )
        if not 0 < shares[0] < math.inf:
            raise SettingError("half_batch or fraction must be positive", seen=seen)
        if not 0 < self.calibration < math.inf:
            raise SettingError(
                "the calibration of a noise scale must be positive",
                seen=f"calibration={self.calibration}",
                fix="the value of branch_probe(...).calibration, or 1",
            )

    def aim(self, examples: int, reading: Reading | None = None) -> Aim | None:
        """What the noise scale asks for; None until there is one."""
        if reading is None:
            return None
        noise = reading.noise_scale.scale(self.calibration)
        if not (math.isfinite(noise.value) and noise.value > 0):
            return None
        return Aim(
            batch=self._within(self._batch(noise.value)),
            low=self._within(self._batch(max(noise.low, 0.0))),
            high=self._within(self._batch(noise.high)),
            reason=f"{self._followed} {noise.value:.3g} ({noise.low:.3g} to "
            f"{noise.high:.3g}) asks for {self._batch(noise.value):.3g}",
        )

    def _batch(self, noise: float) -> float:
        if self.fraction is not None:
            return self.fraction * noise
        assert self.half_batch is not None
        return math.sqrt(noise * self.half_batch)

    @property
    def _followed(self) -> str:
        factor = "" if self.calibration == 1 else f"{self.calibration:.3g} x "
        return f"{factor}noise scale"

    def __str__(self) -> str:
        if self.fraction is not None:
            return self._described(f"{self.fraction:g} x {self._followed}")
        return self._described(f"sqrt({self._followed} x {self.half_batch:.3g})")


@dataclass(frozen=True, slots=True)
class SignalToNoise(_Live):
    """The batch grows as the gradient shrinks: B proportional to 1 / |G|^2.

    It keeps the signal-to-noise ratio of a step where the noise itself stays; with a
    noise that changes too, `FollowNoise` with a fraction does. |G|^2 is the unbiased
    one: the raw norm of a batch's gradient has the noise in it and stops falling.

    Args:
        first: The batch at the first known |G|^2.
        least: The smallest batch.
        most: The largest batch.

    Raises:
        SettingError: The first batch is outside of the limits.

    Example:
        >>> import rightbatch as rb
        >>> str(rb.schedules.SignalToNoise(64, most=1024))
        'batch from 64, follows 1 / |G|^2 within 1 to 1,024'

    References:
        De et al. 2017, arXiv:1610.05792; the unbiased |G|^2: McCandlish et al. 2018,
        arXiv:1812.06162.
    """

    def aim(self, examples: int, reading: Reading | None = None) -> Aim | None:
        """What the gradient's norm asks for; None until it is known."""
        if reading is None or not reading.first_grad_norm_sq > 0:
            return None
        signal, first = reading.grad_norm_sq, reading.first_grad_norm_sq
        if not (signal.value > 0 and math.isfinite(signal.value)):
            return None

        def batch(norm_sq: float) -> float:
            return self._within(self.first * first / max(norm_sq, 1e-300))

        return Aim(
            batch=batch(signal.value),
            low=batch(signal.high),
            high=batch(signal.low),
            reason=f"|G|^2 is {signal.value / first:.3g} x its first value",
        )

    def __str__(self) -> str:
        return self._described("1 / |G|^2")
