"""What branches from one checkpoint came to: kept in a file while they grow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from rightbatch.core.errors import SettingError
from rightbatch.core.json_io import read_json, write_json
from rightbatch.measure.measurements import Lane, NoisePoint, Race

FORMAT = "rightbatch/branches/1"
SAME_START = 1e-3  # what another machine's rounding may make of a metric [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchRecord:
    """Where the branches begin, how far they go, and those that are trained.

    Attributes:
        name: Of the job.
        examples: Seen before the checkpoint.
        batch_size: Of the run there.
        lr: Learning rate of the first param group there.
        horizon: Examples that every branch trains on.
        batch_sizes: Of the branches.
        noise: The gradient's noise at the checkpoint.
        race: Start and branches, whose time is counted in examples.
    """

    name: str
    examples: int
    batch_size: int
    lr: float
    horizon: int
    batch_sizes: tuple[int, ...]
    noise: NoisePoint
    race: Race

    def of_streams(self, branches: int) -> tuple[tuple[Lane, ...], ...]:
        """Branches by stream, where all of so many are trained."""
        by_seed: dict[int, list[Lane]] = {}
        for lane in self.race.lanes:
            by_seed.setdefault(lane.seed, []).append(lane)
        return tuple(tuple(x) for x in by_seed.values() if len(x) == branches)

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self, FORMAT)

    def gone_on(self, path: Path) -> BranchRecord:
        """The record in a file, if it begins as this one does.

        Raises:
            RunFolderError: The file is damaged or of another kind.
            SettingError: Its branches begin elsewhere, or are others.
        """
        kept = read_json(path, BranchRecord, FORMAT)
        names = ("name", "examples", "batch_size", "lr", "horizon", "batch_sizes")
        facts = [(name, getattr(kept, name), getattr(self, name)) for name in names]
        starts = kept.race.start, self.race.start
        if not math.isclose(*starts, rel_tol=SAME_START):
            facts.append(("the metric at the start", *starts))
        for name, there, here in facts:
            if there != here:
                raise SettingError(
                    f"{path} holds other branches: {name} differs",
                    seen=f"{there} there, {here} here",
                    why="branches are compared with each other, from one start",
                    fix="another record, or the settings as they were",
                )
        return kept
