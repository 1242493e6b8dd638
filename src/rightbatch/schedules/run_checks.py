"""Schedules and rates held against a run before it begins."""

from __future__ import annotations

from rightbatch.core.errors import SettingError
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.schedule import Schedule


def check_schedule(
    schedule: Schedule, *, length: int, examples: float, largest: int | None
) -> None:
    """Refuse, before a run begins, a schedule that could not be run to its end.

    Args:
        schedule: What is to be run.
        length: Examples in the data set.
        examples: How many the run will see at most.
        largest: The largest batch that memory allows, or None if any.

    Raises:
        SettingError: It exceeds the data set, or memory.
    """
    # Beyond a live one's first batch, the controller keeps within the limits.
    most = schedule.start if schedule.live else schedule.largest(examples)
    if most > length:
        raise SettingError(
            f"the schedule exceeds the data set of {length:,} examples",
            seen=f"{schedule}: batch {most:,}",
            why="a batch would hold the same example twice",
            fix=f"batches of {length:,} or less (--batch-size, or the job's own)",
        )
    if largest is not None and most > largest:
        raise SettingError(
            f"the schedule exceeds the largest batch set, {largest:,}",
            seen=f"{schedule}: batch {most:,}",
            fix="a smaller schedule, or a larger limit",
        )


def check_rate(rate: Rate, *, end: float, step: int) -> None:
    """Refuse a learning rate that has come to nothing before its run ends.

    Args:
        rate: What is to be followed.
        end: Examples that the run sees.
        step: Examples of its last step, which may be made at zero.

    Raises:
        SettingError: It has.
    """
    if rate.factors[-1] > 0 or rate.examples[-1] >= end - step:
        return
    raise SettingError(
        "the learning rate is zero before the run ends",
        seen=f"zero from {rate.examples[-1]:,.0f} examples on, end at {end:,.0f}",
        why="the rest of the run would change nothing",
        fix=f"a rate over {end:,.0f} examples, or a floor: cosine:9epochs:0.01",
    )


def check_decay_is_met(
    rate: Rate, schedule: Schedule, *, end: float, batch_size: int
) -> None:
    """Refuse a batch that grows until its steps pass over the decay of the rate.

    A step is made at the rate where it begins. One that begins before a short decay and
    ends with the run leaves it unfinished.

    Args:
        rate: What is to be followed.
        schedule: The batch.
        end: Examples that the run sees.
        batch_size: The batch that the rate was made for.

    Raises:
        SettingError: The last step begins in the upper half of the decay, which one of
            ``batch_size`` would not.

    Example:
        >>> from rightbatch.schedules.schedule import Ramp
        >>> short = Rate((0, 9_000, 10_000), (1.0, 1.0, 0.0))
        >>> check_decay_is_met(short, Ramp(64, 256, 5_000), end=10_000, batch_size=64)
    """
    last = schedule.start if schedule.live else schedule.batch_size(int(end))
    height = max(rate.factors) - rate(end)

    def left(step: int) -> float:
        return rate(max(end - step, 0)) - rate(end)

    if last > schedule.start and left(last) > height / 2 >= left(batch_size):
        raise SettingError(
            "the batch grows so far that it leaves the decay of the rate unfinished",
            seen=f"{rate}; the last step, of {last:,} examples, begins at a factor of "
            f"{rate(end - last):.3g}",
            why="a step is made at the rate where it begins",
            fix="a longer decay, of several of the last batches; or a smaller last "
            "batch",
        )
