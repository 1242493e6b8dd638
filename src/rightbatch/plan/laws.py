"""The laws fitted to one job's measurements, and what they predict together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rightbatch.core.estimate import Estimate
from rightbatch.core.findings import Coupled
from rightbatch.fit.critical_batch import NoiseLaw, critical_from_noise, noise_growth
from rightbatch.fit.energy_law import EnergyLaw, fit_energy
from rightbatch.fit.passages import Passages, passages_of
from rightbatch.fit.rate_law import NOISE, RateLaw, RatePrior, fit_rate_law
from rightbatch.fit.step_time import TimeLaw, fit_time
from rightbatch.job.optimizers import Family
from rightbatch.measure.measurements import Measurements
from rightbatch.measure.run_progress import points_of_progress, steps_to_target
from rightbatch.memory.envelope import Envelope, fit_points

# Exponent of the best rate in 1 + N/B, and how far jobs lie from it. [measured on six
# grids: .93, .95, 1.26 under SGD; .53, .63, .64 under Adam]
POWERS: dict[Family, tuple[float, float]] = {
    "sgd": (0.95, 0.2),
    "adam": (0.55, 0.15),
    # Not measured: of updates with a size of their own, as Adam's. [assumed]
    "shampoo": (0.6, 0.25),
    "muon": (0.6, 0.25),
    "lion": (0.6, 0.25),
    "adafactor": (0.6, 0.25),
    "other": (0.6, 0.25),
}
# How far N of a race may lie from the noise: standard deviation of the log. [measured
# on six grids: within 1.8 x on four, 2.5 and 15 x on two]
NOISE_SPREAD = 1.0
UNKNOWN_SPREAD = 2.0  # the same where no noise was measured: a guess from today's batch
LR_SPREAD = 1.4  # today's rate may be 16 x off: two standard deviations [assumed]
GROWTH, GROWTH_SPREAD = (
    0.3,
    0.3,
)  # of the noise in time, if not seen [measured, 0 to .8]


@dataclass(frozen=True)
class Laws:
    """What a step costs, how many steps a setting needs, and where today's is.

    Attributes:
        time: Step time against micro-batch.
        memory: Peak memory against micro-batch, where it was measured.
        noise: The critical batch by the gradient's noise, where that was measured.
        rate: Steps against batch and learning rate, with draws.
        passages: Of the race, to which that was fitted; None before one.
        baseline: Today's batch size.
        baseline_lr: Today's learning rate.
        steps_to_target: Steps of today's setting to the target, where a run or the race
            reached it.
        energy: Energy of a step against micro-batch, where it was measured.
        world_size: Processes that train together.
        coupled: Where the examples of a batch touch each other.
        grouped: Whether more than are normalised together can be made at once.
    """

    time: TimeLaw
    memory: Envelope | None
    noise: NoiseLaw | None
    rate: RateLaw
    passages: Passages | None
    baseline: int
    baseline_lr: float
    steps_to_target: float | None
    energy: EnergyLaw | None = None
    world_size: int = 1
    coupled: Coupled = ""
    grouped: bool = False

    @property
    def measured(self) -> bool:
        """Whether noise or runs say anything of steps; else the law is a guess."""
        return self.noise is not None or self.rate.runs > 0

    @property
    def critical(self) -> NoiseLaw:
        """The critical batch as noise and runs together say; all commands tell this."""
        return _critical(self.noise, self.rate)

    def split(
        self, batch_size: int, limit_bytes: float | None
    ) -> tuple[int, int] | None:
        """The fastest (micro_batch, accumulation) that fits; None if none does.

        The micro-batch is over all ranks, and alike on them where that can be.
        """
        largest = self.time.largest
        if self.coupled and limit_bytes is None:
            largest = max(
                largest, self.baseline
            )  # today's is made at once, timed or not
        if self.memory is not None and limit_bytes is not None:
            largest = min(largest, self.memory.largest(limit_bytes))
        splits = [s for s in self._same_function(batch_size) if s[0] <= largest]
        alike = [split for split in splits if split[0] % self.world_size == 0]
        return min(
            alike or splits, key=lambda s: self.time.step_seconds(*s), default=None
        )

    def _same_function(self, batch_size: int) -> list[tuple[int, int]]:
        """The splits that leave model and loss what they are.

        A loss that compares examples is made at once; what is normalised together
        stays as many examples as today, in one micro-batch or in groups of a larger.
        """
        if self.coupled == "loss":
            return [(batch_size, 1)]
        pieces = range(1, batch_size + 1)
        splits = [(batch_size // k, k) for k in pieces if batch_size % k == 0]
        if self.coupled == "normalization":
            groups = [split for split in splits if split[0] % self.baseline == 0]
            return groups if self.grouped else groups[-1:]
        return splits

    def step_s(self, batch_size: int, limit_bytes: float | None = None) -> float:
        """Seconds of a step, by the fastest split."""
        split = self.split(batch_size, limit_bytes) or (batch_size, 1)
        return self.time.step_seconds(*split)

    def relative_steps(
        self, batch_size: int, lr: float
    ) -> tuple[float, Float[np.ndarray, " draws"]]:
        """Steps to the same result over today's, by the fit and by every draw."""
        batches = np.array([float(batch_size), float(self.baseline)])
        lrs = np.array([lr, self.baseline_lr])
        value = self.rate.log_steps(batches, lrs)
        draws = self.rate.log_steps_drawn(batches, lrs)
        return math.exp(value[0] - value[1]), np.exp(draws[:, 0] - draws[:, 1])


def laws_of(measurements: Measurements) -> Laws:
    """Fit the laws to what was measured.

    Raises:
        UnidentifiedError: Times are missing or too few.
    """
    memory, energy = measurements.memory, measurements.energy
    job = measurements.job
    noise, passages, rate = _of_steps(measurements)
    steps = steps_to_target(measurements)
    if passages is not None and passages.to_target:
        today = np.array([float(job.batch_size)]), np.array([job.lr])
        steps = math.exp(rate.level + float(rate.log_steps(*today)[0]))
    return Laws(
        time=fit_time(measurements.times, measurements.contention),
        memory=fit_points(memory) if len(memory) >= 2 else None,
        noise=noise,
        rate=rate,
        passages=passages,
        baseline=job.batch_size,
        baseline_lr=job.lr,
        steps_to_target=steps,
        energy=fit_energy(energy) if len(energy) >= 2 else None,
        world_size=measurements.machine.world_size,
        coupled=job.coupled,
        grouped=job.grouped,
    )


def critical_of(measurements: Measurements) -> Estimate | None:
    """`Laws.critical` of measurements without step times; None: nothing tells it."""
    noise, _, rate = _of_steps(measurements)
    if noise is None and rate.runs == 0:
        return None
    return _critical(noise, rate).critical_batch


def _of_steps(
    measurements: Measurements,
) -> tuple[NoiseLaw | None, Passages | None, RateLaw]:
    """What noise and race say of the number of steps."""
    points, race = points_of_progress(measurements), measurements.race
    today = measurements.job.batch_size
    noise = critical_from_noise(points, today) if len(points) >= 2 else None
    passages = None if race is None else passages_of(race)
    prior = rate_prior(measurements, noise, raced=race is not None)
    return noise, passages, fit_rate_law(passages, prior)


def _critical(noise: NoiseLaw | None, rate: RateLaw) -> NoiseLaw:
    """Of the law of batch and rate; without a run, of noise that sets no upper bound.

    Such noise is no more than a guess in that law, which needs a number.
    """
    unbounded = noise is not None and math.isinf(noise.critical_batch.value)
    if noise is not None and unbounded and rate.runs == 0:
        return noise
    return NoiseLaw(rate.critical_batch, np.exp(rate.draws[:, NOISE]))


def rate_prior(
    measurements: Measurements, noise: NoiseLaw | None, *, raced: bool
) -> RatePrior:
    """What the noise lets expect of the law of batch and rate.

    Args:
        measurements: Of a job; a race in them is not looked at.
        noise: The critical batch by noise; None where it was not measured.
        raced: Whether a race has tried other rates, or will. Where none has, today's
            rate is taken as right for today's batch: nothing is known of it.
    """
    job = measurements.job
    power, power_spread = POWERS[job.family]
    centre, spread = math.log(max(job.batch_size, 32)), UNKNOWN_SPREAD
    if noise is not None:
        critical = noise.critical_batch
        known = critical.value if math.isfinite(critical.value) else 2 * critical.low
        if math.isfinite(known) and known > 0:
            centre = math.log(known)
            own = (
                math.log(critical.high / critical.low) / 4 if critical.bounded else 1.0
            )
            spread = math.hypot(NOISE_SPREAD, own)
    growth = None if noise is None else noise_growth(measurements.noise)
    return RatePrior(
        batch_size=job.batch_size,
        lr=job.lr,
        noise=centre,
        noise_spread=spread,
        growth=GROWTH if growth is None else growth,
        growth_spread=GROWTH_SPREAD,
        power=power,
        power_spread=power_spread,
        lr_spread=LR_SPREAD if raced else 0.01,
    )
