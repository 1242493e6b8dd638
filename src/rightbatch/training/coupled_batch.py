"""Examples that see each other are kept together, as many of them as were planned."""

from __future__ import annotations

from collections.abc import Iterable

from rightbatch.core.errors import JobError, SettingError


def check_together(counts: Iterable[int], together: int, ranks: int) -> None:
    """Refuse micro-batches of another number of examples than see each other.

    Args:
        counts: Examples in each micro-batch of this rank.
        together: Examples that see each other.
        ranks: Processes that make the batch together.

    Raises:
        SettingError: There is one.
    """
    others = sorted({*counts} - {together})
    if others:
        raise SettingError(
            f"a batch is no multiple of the {together} examples that see each other",
            seen=f"micro-batches of {', '.join(map(str, others))} on one of {ranks} "
            "rank(s)",
            why="another number of them is another function, with another best rate",
            fix=f"batches of {together * ranks} examples, or multiples of that",
        )


def no_room_together(together: int, text: str) -> JobError:
    """The error where memory ran out with as few examples as may be made at once."""
    return JobError(
        f"the {together} examples that are kept together do not fit in memory",
        seen=text,
        why="fewer of them are another function, with another best rate",
        fix="micro_batch at the plan's coupled_batch, where that is less; "
        "precision='bfloat16', activation checkpointing, a smaller model; or tune the "
        "job at a smaller batch_size",
    )
