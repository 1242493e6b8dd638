"""What a monitor saw along a run, as it is kept in a file."""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch.noise.statistics.course import (
    LEAST_SAMPLES,
    PLAIN,
    Course,
    Stretch,
)
from rightbatch.noise.statistics.moments import NoiseMoments
from rightbatch.noise.statistics.scale import NoiseScale

FORMAT = "rightbatch/noise/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseReading:
    """Signal and noise over a stretch of a run.

    Attributes:
        step: Updates made before its middle.
        examples: Examples seen at its middle.
        batch_size: Mean examples of a measured step.
        samples: Measured steps.
        plain: Signal and noise in the Euclidean metric, with their covariance.
        metrics: The same in the optimizer's metrics, where it has such.
    """

    step: int
    examples: int
    batch_size: int
    samples: int
    plain: NoiseMoments
    metrics: dict[str, NoiseMoments]

    @classmethod
    def of(cls, stretch: Stretch) -> NoiseReading:
        """The sums of a stretch as moments; a metric seen too rarely is left out."""
        plain = stretch.sums[PLAIN]
        return cls(
            step=sum(stretch.steps) // 2,
            examples=sum(stretch.examples) // 2,
            batch_size=round(plain.weight / plain.count),
            samples=plain.count,
            plain=plain.moments,
            metrics={
                name: sums.moments
                for name, sums in stretch.sums.items()
                if name != PLAIN and sums.count >= LEAST_SAMPLES
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedNoise:
    """The noise along a run.

    Attributes:
        steps: Updates of the run.
        examples: Examples it had seen.
        parameters: Numbers that were trained.
        coverage: Share of them that the monitor saw.
        source: Where its groups of examples came from.
        readings: Along the run, in order.
    """

    steps: int
    examples: int
    parameters: int
    coverage: float
    source: str
    readings: tuple[NoiseReading, ...]

    @classmethod
    def of(
        cls, course: Course, noise: NoiseScale, *, steps: int, parameters: int
    ) -> SavedNoise:
        """What is worth keeping of a monitor's course and of its reading."""
        return cls(
            steps=steps,
            examples=noise.examples,
            parameters=parameters,
            coverage=noise.coverage.parameters,
            source=noise.source,
            readings=tuple(NoiseReading.of(s) for s in course.readings()),
        )
