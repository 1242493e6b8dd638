"""What a batch must keep to: the memory of a step, and a deadline."""

from __future__ import annotations

from collections.abc import Sequence

from rightbatch.core.errors import SettingError, UnidentifiedError
from rightbatch.measure.record import Measurements
from rightbatch.plan.laws import Laws
from rightbatch.plan.options import Option, candidate_batches, predict

MEMORY_SHARE = 0.9  # of the free memory may be planned with [assumed]


def memory_limit(measurements: Measurements, memory_bytes: float | None) -> float:
    """Bytes a step may take: as asked for, or 90 % of what was free.

    Raises:
        SettingError: What is asked for is not positive.
    """
    if memory_bytes is None:
        return MEMORY_SHARE * measurements.machine.memory_bytes
    if memory_bytes <= 0:
        raise SettingError("memory must be positive", seen=f"{memory_bytes} bytes")
    return memory_bytes


def options_within(laws: Laws, examples: int, limit_bytes: float) -> tuple[Option, ...]:
    """Every batch worth considering of which a split fits in memory, by size.

    Raises:
        SettingError: Not even a single example fits.
    """
    sizes = candidate_batches(laws, examples)
    options = tuple(o for b in sizes if (o := predict(laws, b, limit_bytes)))
    if options:
        return options
    assert laws.memory is not None, "only a memory law can leave no option"
    raise SettingError(
        "not even one example at a time fits in the memory allowed",
        seen=f"{laws.memory.peak(1) / 2**20:.1f} MiB needed at micro-batch 1, "
        f"{limit_bytes / 2**20:.1f} MiB allowed",
        why="every larger micro-batch needs more",
        fix="--memory with more than that",
    )


def within_deadline(
    options: Sequence[Option], deadline_s: float | None
) -> Sequence[Option]:
    """The options that reach the target in time.

    Raises:
        SettingError: The deadline is not positive.
        UnidentifiedError: How long a run takes is not known, or no option is fast
            enough.
    """
    if deadline_s is None:
        return options
    if deadline_s <= 0:
        raise SettingError("the deadline must be positive", seen=f"{deadline_s} s")
    timed = [(o, o.seconds) for o in options if o.seconds is not None]
    if not timed:
        raise UnidentifiedError(
            "the deadline cannot be judged: how long a run takes is not known",
            seen="no measuring run reached a target within the budget",
            why="gradient noise shows how batches compare, not how far the target is",
            fix="a Job with evaluate= and target=, and a larger --budget",
        )
    kept = [o for o, seconds in timed if seconds.value <= deadline_s]
    if not kept:
        fastest, seconds = min(timed, key=lambda pair: pair[1].value)
        raise UnidentifiedError(
            "no batch size meets the deadline",
            seen=f"the fastest, B = {fastest.batch_size}, needs {seconds} of "
            f"{deadline_s:g} s",
            why="the target, not the batch, sets the least time on this machine",
            fix="a later deadline, or a faster machine",
        )
    return kept
