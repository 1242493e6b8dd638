"""The laws fitted to one job's measurements, and what they predict together."""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch.core.findings import Coupled
from rightbatch.fit.critical_batch import NoiseLaw, critical_from_noise
from rightbatch.fit.energy_law import EnergyLaw, fit_energy
from rightbatch.fit.step_time import TimeLaw, fit_time
from rightbatch.measure.measurements import Measurements
from rightbatch.measure.run_progress import points_of_progress, steps_to_target
from rightbatch.memory.envelope import Envelope, fit_points


@dataclass(frozen=True)
class Laws:
    """What a step costs, how many steps a batch needs, and where today's setting is.

    Attributes:
        time: Step time against micro-batch.
        memory: Peak memory against micro-batch, where it was measured.
        noise: The critical batch, with draws.
        baseline: Today's batch size.
        steps_to_target: Steps it took to the target, where the target was reached.
        energy: Energy of a step against micro-batch, where it was measured.
        world_size: Processes that train together.
        coupled: Where the examples of a batch touch each other.
    """

    time: TimeLaw
    memory: Envelope | None
    noise: NoiseLaw
    baseline: int
    steps_to_target: int | None
    energy: EnergyLaw | None = None
    world_size: int = 1
    coupled: Coupled = ""

    def split(
        self, batch_size: int, limit_bytes: float | None
    ) -> tuple[int, int] | None:
        """The fastest (micro_batch, accumulation) that fits; None if none does.

        The micro-batch is over all ranks, and alike on them where that can be.
        """
        largest = self.time.largest
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
        stays as many examples as today.
        """
        if self.coupled == "loss":
            return [(batch_size, 1)]
        pieces = range(1, batch_size + 1)
        splits = [(batch_size // k, k) for k in pieces if batch_size % k == 0]
        if self.coupled == "normalization":
            return [split for split in splits if split[0] == self.baseline]
        return splits

    def steps(self, batch_size: int, draw: int | None = None) -> float:
        """Steps to the same result over the baseline's, by the fit or one draw."""
        return self.noise.relative_steps(batch_size, self.baseline, draw)


def laws_of(measurements: Measurements) -> Laws:
    """Fit the laws to what was measured.

    Raises:
        UnidentifiedError: Times or noise are missing or too few.
    """
    memory, energy = measurements.memory, measurements.energy
    baseline = measurements.job.batch_size
    return Laws(
        time=fit_time(measurements.times, measurements.contention),
        memory=fit_points(memory) if len(memory) >= 2 else None,
        noise=critical_from_noise(points_of_progress(measurements), baseline),
        baseline=baseline,
        steps_to_target=steps_to_target(measurements),
        energy=fit_energy(energy) if len(energy) >= 2 else None,
        world_size=measurements.machine.world_size,
        coupled=measurements.job.coupled,
    )
