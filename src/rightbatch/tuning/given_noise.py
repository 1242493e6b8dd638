"""Noise that is known before a job is measured: of a real run, from its monitor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rightbatch.core.errors import UnidentifiedError
from rightbatch.core.findings import Finding
from rightbatch.measure.load_noise import LEAST_POINTS, load_saved_noise, points_of
from rightbatch.measure.measurements import NoisePoint
from rightbatch.noise.saved_noise import SavedNoise
from rightbatch.training.run_state import RunState

CODE = "RB121"
SEEN = 0.99  # share of a model's parameters below which a warning is due [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenNoise:
    """Noise along a run, and which run that was.

    Attributes:
        points: In the order of the run.
        source: The run in words, such as ``"noise.json, a run of 1,234,567 examples"``.
        saved: The file, where it is from one.
    """

    points: tuple[NoisePoint, ...]
    source: str
    saved: SavedNoise | None = None

    def findings(self, run: RunState) -> tuple[Finding, ...]:
        """Where the noise is from, and what makes it another one than the job's."""
        doubts, trained = [], sum(p.numel() for p in run.parameters)
        if self.saved is not None and self.saved.parameters != trained:
            doubts.append(
                f"is of a model with {self.saved.parameters:,} trained parameters, the "
                f"job's has {trained:,}"
            )
        if self.saved is not None and self.saved.coverage < SEEN:
            doubts.append(f"is of {self.saved.coverage:.0%} of its model")
        known = Finding(
            code=CODE,
            severity="note",
            what=f"the noise is that of {self.source}: none is measured here",
        )
        why = "the critical batch follows from it as if it were the job's own"
        return known, *(
            Finding(code=CODE, severity="warning", what=f"the noise {doubt}", why=why)
            for doubt in doubts
        )


def given_noise(noise: str | Path | Sequence[NoisePoint]) -> GivenNoise:
    """From a file of `NoiseMonitor.save`, or from points.

    Raises:
        RunFolderError: The file is missing, damaged, or of another format.
        UnidentifiedError: Fewer than 2 points.
    """
    if isinstance(noise, (str, Path)):
        saved = load_saved_noise(noise)
        name = Path(noise).name
        source = f"{name}, a run of {saved.examples:,} examples"
        return GivenNoise(points=points_of(saved, noise), source=source, saved=saved)
    points = tuple(noise)
    if len(points) < LEAST_POINTS:
        raise UnidentifiedError(
            "the noise given has too few points to judge a run by",
            seen=f"{len(points)} points",
            fix="what NoiseMonitor.save wrote, later in the run",
        )
    source = f"a run of {points[-1].examples:,} examples"
    return GivenNoise(points=points, source=source)
