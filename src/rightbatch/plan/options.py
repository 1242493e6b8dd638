"""Every batch worth considering, with what the two laws predict for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rightbatch.core.estimate import Estimate
from rightbatch.fit.energy import EnergyLaw
from rightbatch.fit.step_time import TimeLaw
from rightbatch.fit.steps import NoiseLaw
from rightbatch.memory.envelope import Envelope

BEYOND = 8  # batches are considered up to so many times the largest timed [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One batch size, split for the machine, with predictions against today's batch.

    Attributes:
        batch_size: B = micro_batch * accumulation.
        micro_batch: Examples in memory at once.
        accumulation: Micro-batches per optimizer step.
        step_time_s: Predicted time of one optimizer step.
        peak_memory_bytes: Predicted peak, None where memory was not measured.
        steps: Optimizer steps to the same result, over today's.
        examples: Examples to the same result, over today's.
        time: Time to the same result, over today's.
        seconds: Time to the target, where a run has reached it.
        energy: Energy to the same result, over today's, where it was measured.
    """

    batch_size: int
    micro_batch: int
    accumulation: int
    step_time_s: Estimate
    peak_memory_bytes: int | None
    steps: Estimate
    examples: Estimate
    time: Estimate
    seconds: Estimate | None
    energy: Estimate | None = None


@dataclass(frozen=True)
class Laws:
    """The two laws and where today stands.

    Attributes:
        time: Step time against micro-batch.
        memory: Peak memory against micro-batch, where measured.
        noise: The critical batch, with draws.
        today: Today's batch size.
        steps_to_target: Steps today's batch took to the target, where it was reached.
        energy: Energy of a step against micro-batch, where measured.
    """

    time: TimeLaw
    memory: Envelope | None
    noise: NoiseLaw
    today: int
    steps_to_target: int | None
    energy: EnergyLaw | None = None

    def split(
        self, batch_size: int, limit_bytes: float | None
    ) -> tuple[int, int] | None:
        """The fastest (micro_batch, accumulation) that fits; None if none does."""
        largest = self.time.largest
        if self.memory is not None and limit_bytes is not None:
            largest = min(largest, self.memory.largest(limit_bytes))
        splits = [
            (batch_size // k, k)
            for k in range(1, batch_size + 1)
            if batch_size % k == 0 and batch_size // k <= largest
        ]
        return min(splits, key=lambda s: self.time.step_seconds(*s), default=None)

    def ratio(self, critical: float, batch_size: int) -> float:
        """Steps at a batch over steps at today's, (1 + C/B) / (1 + C/B0)."""
        if math.isinf(critical):
            return self.today / batch_size
        grown = (batch_size + critical) / (self.today + critical)
        return grown * self.today / batch_size

    def option(self, batch_size: int, limit_bytes: float | None) -> Option | None:
        """Everything the laws say of one batch; None if it does not fit."""
        split = self.split(batch_size, limit_bytes)
        today = self.split(self.today, None)
        if split is None:
            return None
        assert today is not None, "without a limit every batch has a split"

        def step(draw: int | None) -> float:
            return self.time.step_seconds(*split, draw)

        def steps(draw: int | None) -> float:
            return self.ratio(self._critical(draw), batch_size)

        def times(draw: int | None) -> float:
            return steps(draw) * step(draw) / self.time.step_seconds(*today, draw)

        def joules(draw: int | None) -> float:
            assert self.energy is not None
            own = self.energy.joules(*split, draw)
            return steps(draw) * own / self.energy.joules(*today, draw)

        def seconds(draw: int | None) -> float:
            assert self.steps_to_target is not None
            return steps(draw) * self.steps_to_target * step(draw)

        peak = round(self.memory.peak(split[0])) if self.memory else None
        return Option(
            batch_size=batch_size,
            micro_batch=split[0],
            accumulation=split[1],
            step_time_s=self._estimate(step, "s"),
            peak_memory_bytes=peak,
            steps=self._estimate(steps),
            examples=self._estimate(lambda d: steps(d) * batch_size / self.today),
            time=self._estimate(times),
            seconds=self._estimate(seconds, "s") if self.steps_to_target else None,
            energy=self._estimate(joules) if self.energy is not None else None,
        )

    def _critical(self, draw: int | None) -> float:
        if draw is None:
            return self.noise.critical_batch.value
        return float(self.noise.draws[draw])

    def _estimate(self, f: Callable[[int | None], float], unit: str = "") -> Estimate:
        draws = [f(d) for d in range(len(self.noise.draws))]
        return Estimate.from_draws(
            f(None),
            draws,
            unit=unit,
            n=self.noise.critical_batch.n,
            method=f"{self.time.kind} law and noise, joint draws",
        )

    def time_draws(self, options: Sequence[Option]) -> np.ndarray:
        """Times of the options up to a common factor, shape (draws, options)."""
        return np.array(
            [
                [
                    self.ratio(self._critical(draw), o.batch_size)
                    * self.time.step_seconds(o.micro_batch, o.accumulation, draw)
                    for o in options
                ]
                for draw in range(len(self.noise.draws))
            ]
        )

    def energy_draws(self, options: Sequence[Option]) -> np.ndarray:
        """Energies of the options up to a common factor, shape (draws, options)."""
        assert self.energy is not None
        return np.array(
            [
                [
                    self.ratio(self._critical(draw), o.batch_size)
                    * self.energy.joules(o.micro_batch, o.accumulation, draw)
                    for o in options
                ]
                for draw in range(len(self.noise.draws))
            ]
        )

    def example_draws(self, options: Sequence[Option]) -> np.ndarray:
        """Examples the options need over today's, shape (draws, options)."""
        return np.array(
            [
                [
                    self.ratio(self._critical(draw), o.batch_size)
                    * o.batch_size
                    / self.today
                    for o in options
                ]
                for draw in range(len(self.noise.draws))
            ]
        )


def candidate_batches(laws: Laws, examples: int) -> list[int]:
    """Powers of two and today's batch; the optimum is too flat to need finer steps."""
    top = min(examples, BEYOND * max(laws.time.largest, laws.today))
    least = laws.time.smallest
    powers = [2**i for i in range(top.bit_length()) if least <= 2**i <= top]
    return sorted({*powers, laws.today})
