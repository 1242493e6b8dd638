"""Stages as Megatron-LM writes them: ``0:768 250B:1536``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import whole_number

# Megatron-LM pull request 4411: powers of ten, in either case [cited].
UNITS = {"T": 10**12, "B": 10**9, "M": 10**6, "K": 10**3, "": 1}
NUMBER = re.compile(r"(\d+(?:\.\d+)?)([KMBT]?)", re.IGNORECASE)


def read_stages(text: str, tokens_per_example: int = 1) -> tuple[tuple[int, int], ...]:
    """Pairs of examples seen and batch; places within an example are rounded down.

    Raises:
        SettingError: It is no such text.
    """
    unit = whole_number(tokens_per_example, "tokens_per_example")
    words = [word.split(":") for word in text.replace(",", " ").split()]
    numbers = [_number(part) for word in words for part in word]
    if not words or any(len(word) != 2 for word in words) or None in numbers:
        raise SettingError(
            "the schedule cannot be read as places and batches",
            seen=repr(text),
            fix="0:768 250B:1536, in examples; on a command line, with tokens/4096 "
            "behind it in tokens",
        )
    whole = [n for n in numbers if n is not None]
    return tuple((p // unit, b) for p, b in zip(whole[::2], whole[1::2], strict=True))


def write_stages(stages: Iterable[tuple[int, int]], tokens_per_example: int = 1) -> str:
    """The text that `read_stages` reads as these stages."""
    unit = whole_number(tokens_per_example, "tokens_per_example")
    return " ".join(f"{_short(place * unit)}:{batch}" for place, batch in stages)


def _number(text: str) -> int | None:
    match = NUMBER.fullmatch(text)
    value = Fraction(match[1]) * UNITS[match[2].upper()] if match else Fraction(1, 2)
    return int(value) if value.denominator == 1 else None


def _short(number: int) -> str:
    """With the largest unit that leaves a whole number."""
    unit = next(u for u, size in UNITS.items() if not number % size or not u)
    return f"{number // UNITS[unit]}{unit if number else ''}"
