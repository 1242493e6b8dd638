"""Stages as Megatron-LM writes them: ``0:768 250B:1536``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import whole_number

# Megatron-LM pull request 4411: powers of ten, in either case [cited].
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
FORM = "0:768 250B:1536, with tokens/4096 behind it where the places are in tokens"


def read_stages(
    text: str, tokens_per_example: int | None = None
) -> tuple[tuple[int, int], ...]:
    """Pairs of examples seen and batch.

    Args:
        text: Places and batches, apart by spaces or commas. The last word may say
            ``tokens/4096`` itself.
        tokens_per_example: If given, places are in tokens, of which an example has so
            many. A place within an example is taken back to where that one begins, as
            Megatron-LM does it.

    Raises:
        SettingError: It is no such text, or says another length of an example.

    Example:
        >>> read_stages("0:768 250B:1536 tokens/4096")
        ((0, 768), (61035156, 1536))
        >>> read_stages("0:768,1.5M:1K")
        ((0, 768), (1500000, 1000))
    """
    words = text.replace(",", " ").split()
    if words and (said := re.fullmatch(r"tokens/(\d+)", words[-1])):
        words.pop()
        if tokens_per_example not in (None, int(said[1])):
            raise SettingError(
                "the schedule and tokens_per_example say different lengths",
                seen=f"{said[0]}, tokens_per_example={tokens_per_example}",
                fix="one of the two",
            )
        tokens_per_example = int(said[1])
    unit = 1
    if tokens_per_example is not None:
        unit = whole_number(tokens_per_example, "tokens_per_example")
    pairs = [re.fullmatch(r"([^:]+):([^:]+)", word) for word in words]
    numbers = [_number(p[1]) + _number(p[2]) for p in pairs if p]
    if not words or len(numbers) < len(words) or any(len(n) < 2 for n in numbers):
        raise SettingError(
            "the schedule cannot be read as places and batches",
            seen=repr(text),
            fix=FORM,
        )
    return tuple((place // unit, batch) for place, batch in numbers)


def write_stages(
    stages: Iterable[tuple[int, int]], tokens_per_example: int | None = None
) -> str:
    """The text that Megatron-LM reads as these stages.

    Args:
        stages: Pairs of examples seen and batch.
        tokens_per_example: If given, places are written in tokens.

    Example:
        >>> write_stages(((0, 768), (50_000, 1536)), tokens_per_example=4096)
        '0:768 204800K:1536'
    """
    unit = 1
    if tokens_per_example is not None:
        unit = whole_number(tokens_per_example, "tokens_per_example")
    return " ".join(f"{_short(place * unit)}:{batch}" for place, batch in stages)


def _number(text: str) -> tuple[int, ...]:
    """A whole number with or without a unit, in a tuple; empty if it is none."""
    match = re.fullmatch(r"(\d+)(?:\.(\d+))?([KMBT]?)", text.upper())
    if match is None:
        return ()
    decimals = match[2] or ""
    value, rest = divmod(
        int(match[1] + decimals) * UNITS[match[3]], 10 ** len(decimals)
    )
    return () if rest else (value,)


def _short(number: int) -> str:
    """With the largest unit that leaves a whole number."""
    letter = (
        next(
            u
            for u, size in reversed(UNITS.items())
            if number % size == 0 and number >= size
        )
        if number
        else ""
    )
    return f"{number // UNITS[letter]}{letter}"
