"""How a job is run: what its own fields do not say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import keep_whole_numbers
from rightbatch.data.audit.audit import is_loader
from rightbatch.job.job import Job
from rightbatch.measure.measurements import Measurements
from rightbatch.schedules.schedule import Schedule

# What is taken where something of the loop is given, and an example of it.
TAKEN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "schedule": (lambda x: isinstance(x, Schedule), "schedule='ramp:32:512:10k'"),
    "scheduler": (lambda x: hasattr(x, "step"), "CosineAnnealingLR(optimizer, ...)"),
    "averaged": (
        lambda x: hasattr(x, "decay") or hasattr(x, "state_dict"),
        "AveragedModel(model, ...)",
    ),
    "loader": (is_loader, "a DataLoader or a BatchStream"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How one batch is made: ``B = b k n``.

    Attributes:
        micro_batch: Examples of one pass on one rank.
        accumulation: Passes of one rank that make a step.
        ranks: Processes that make it together.
    """

    micro_batch: int
    accumulation: int
    ranks: int

    @property
    def batch_size(self) -> int:
        """Examples per step, over all ranks."""
        return self.micro_batch * self.accumulation * self.ranks

    def __str__(self) -> str:
        more = [(self.accumulation, "accumulated"), (self.ranks, "ranks")]
        shown = [f" x {count} {word}" for count, word in more if count > 1]
        return f"B = {self.batch_size} as {self.micro_batch} at once{''.join(shown)}"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a job is run, as far as it was said; the linter holds the job against it.

    Attributes:
        micro_batch: Examples of one pass; by default the job's batch over all passes,
            and the batch of a loop as it is.
        accumulation: Passes that make a step; by default as many as the job's batch
            needs.
        ranks: Processes that make a step together.
        schedule: The batch along the run, where it changes.
        scheduler: torch's learning-rate scheduler, stepped once for every update.
        averaged: The averaged copy of the model (EMA), updated once for every update.
        loader: The loader that feeds the loop.
        time_axis: Axis of time in the model's outputs, where nothing may look ahead.
        measurements: What `tune` measured of this job.
        recipe: Whether optimizer and batch size are the user's, so that what follows
            from them can be judged.
        sample: Whether the job's data are one batch of a loop: then neither the size of
            the data is known, nor the batch that the rate was chosen for.

    Raises:
        SettingError: A number that is not whole, or below one; or scheduler, averaged
            or loader is another thing.
    """

    micro_batch: int | None = None
    accumulation: int | None = None
    ranks: int = 1
    schedule: Schedule | None = None
    scheduler: Any = None
    averaged: Any = None
    loader: Any = None
    time_axis: int | None = None
    measurements: Measurements | None = None
    recipe: bool = True
    sample: bool = False

    def __post_init__(self) -> None:
        keep_whole_numbers(self, "micro_batch", "accumulation", "ranks")
        for name, (taken, fix) in TAKEN.items():
            given = getattr(self, name)
            if given is not None and (isinstance(given, type) or not taken(given)):
                raise SettingError(
                    f"{name} is something else than expected",
                    seen=f"{name}={given!r:.60}",
                    fix=fix,
                )

    def split(self, job: Job) -> Split:
        """How a batch of this job is made.

        Raises:
            SettingError: The job's batch is less than one example a pass.
        """
        micro, passes = self.micro_batch, self.accumulation
        if micro is None and self.sample:
            micro, passes = job.batch_size, passes or 1
        if micro is None:
            micro = job.batch_size // ((passes or 1) * self.ranks)
        if micro == 0:
            raise SettingError(
                "the batch is smaller than the passes that are to make it",
                seen=f"batch_size {job.batch_size}, {self.ranks} rank(s) x "
                f"{passes or 1} accumulated",
                fix="fewer passes, a larger batch_size, or micro_batch (--micro-batch) "
                "for what each pass takes",
            )
        if passes is None:
            passes = max(1, job.batch_size // (micro * self.ranks))
        return Split(micro_batch=micro, accumulation=passes, ranks=self.ranks)
