"""Durations and sizes as people type and read them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from rightbatch.core.errors import SettingError


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number and its unit, as people type them.

    Attributes:
        name: Such as ``"a duration"``.
        forms: How it may be typed, for who typed something else.
        units: What one of each is worth.
        cased: Whether a unit's capital letters mean something.

    Example:
        >>> DURATION.parse("2h"), MEMORY.parse("1KiB"), BANDWIDTH.parse("400Gb/s")
        (7200.0, 1024.0, 50000000000.0)
    """

    name: str
    forms: str
    units: Mapping[str, float]
    cased: bool = False

    def parse(self, text: str) -> float:
        """The number in seconds, bytes, or bytes per second.

        Raises:
            SettingError: It is none, has another unit, or is not positive.
        """
        typed = text if self.cased else text.lower()
        match = re.fullmatch(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?)\s*([a-zA-Z/]*)\s*", typed)
        if match is not None and match[2] in self.units:
            value = float(match[1]) * self.units[match[2]]
            if 0 < value < math.inf:
                return value
        raise SettingError(f"{text!r} is not {self.name}", fix=self.forms)


SECONDS = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
BYTES = {
    "b": 1.0,
    **{f"{prefix}b": 1e3**i for i, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024.0**i for i, prefix in enumerate("kmgt", start=1)},
}
COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
# A small b is a bit, a large one a byte.
BYTES_PER_SECOND = {
    f"{prefix}{letter}/s": 1e3**i / bits
    for i, prefix in enumerate("kMGT", start=1)
    for letter, bits in (("b", 8), ("B", 1))
}
DURATION = Quantity("a duration", "90, 30s, 2h", {"": 1.0, **SECONDS})
LATENCY = Quantity("a latency", "20us, 0.1ms", SECONDS)
COUNT = Quantity("a count", "300M, 7B, 1e12", COUNTS)
MEMORY = Quantity("an amount of memory", "16GiB, 500MB", BYTES)
BANDWIDTH = Quantity(
    "a bandwidth", "400Gb/s (bits), 50GB/s (bytes)", BYTES_PER_SECOND, cased=True
)


def show_seconds(seconds: float) -> str:
    """A duration in two or three digits and its natural unit.

    Example:
        >>> show_seconds(0.00213), show_seconds(95), show_seconds(7200)
        ('2.13 ms', '1.6 min', '2 h')
    """
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.2g} min"
    return f"{seconds / 3600:.3g} h"


def show_number(value: float) -> str:
    """Three significant digits, without an exponent up to a million.

    Example:
        >>> show_number(0.12345), show_number(5391.2), show_number(1.5e9)
        ('0.123', '5,390', '1.5e+09')
    """
    if 1000 <= abs(value) < 1e6:
        digits = len(str(int(abs(value)))) - 3
        return f"{round(value / 10**digits) * 10**digits:,}"
    return f"{value:.3g}"


def show_count(value: float) -> str:
    """A large count in three digits with M, B or T, as people say it.

    Example:
        >>> show_count(52_340), show_count(6.5e8), show_count(7e9), show_count(1.5e12)
        ('52,300', '650 M', '7 B', '1.5 T')
    """
    for letter, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if 0.9995 * size <= value < 1e15:
            return f"{value / size:.3g} {letter}"
    return show_number(value)


def show_bytes(count: float) -> str:
    """A size in GiB or MiB.

    Example:
        >>> show_bytes(3 * 2**30)
        '3 GiB'
    """
    if count >= 2**30:
        return f"{count / 2**30:.3g} GiB"
    return f"{count / 2**20:.3g} MiB"
