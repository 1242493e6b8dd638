"""Durations and sizes as people type and read them."""

from __future__ import annotations

import math
import re

from rightbatch.core.errors import SettingError

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
# A small b is a bit, a large one a byte: here alone letters are told apart.
BYTES_PER_SECOND = {
    f"{prefix}{letter}/s": 1e3**i / bits
    for i, prefix in enumerate("kMGT", start=1)
    for letter, bits in (("b", 8), ("B", 1))
}


def parse_seconds(text: str) -> float:
    """Seconds from ``"90"``, ``"2h"`` or ``"1.5min"``.

    Raises:
        SettingError: It is none of these, or not positive.

    Example:
        >>> parse_seconds("2h")
        7200.0
    """
    return _parse(text.lower(), {"": 1.0, **SECONDS}, "a duration", "90, 30s, 2h")


def parse_bytes(text: str) -> float:
    """Bytes from ``"16GiB"`` or ``"500MB"``; the unit is required.

    Raises:
        SettingError: It is neither, or not positive.

    Example:
        >>> parse_bytes("1KiB")
        1024.0
    """
    return _parse(text.lower(), BYTES, "an amount of memory", "16GiB, 500MB")


def parse_latency(text: str) -> float:
    """Seconds from ``"20us"`` or ``"0.1ms"``; the unit is required.

    Raises:
        SettingError: It is neither, or not positive.

    Example:
        >>> round(1e6 * parse_latency("20us"))
        20
    """
    return _parse(text.lower(), SECONDS, "a latency", "20us, 0.1ms")


def parse_bandwidth(text: str) -> float:
    """Bytes per second from ``"400Gb/s"`` (bits) or ``"50GB/s"`` (bytes).

    Raises:
        SettingError: It is neither, or not positive.

    Example:
        >>> parse_bandwidth("400Gb/s")
        50000000000.0
    """
    forms = "400Gb/s (bits), 50GB/s (bytes)"
    return _parse(text, BYTES_PER_SECOND, "a bandwidth", forms)


def _parse(text: str, units: dict[str, float], what: str, forms: str) -> float:
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?)\s*([a-zA-Z/]*)\s*", text)
    if match is not None and match[2] in units:
        value = float(match[1]) * units[match[2]]
        if 0 < value < math.inf:
            return value
    raise SettingError(f"{text!r} is not {what}", fix=forms)


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


def show_bytes(count: float) -> str:
    """A size in GiB or MiB.

    Example:
        >>> show_bytes(3 * 2**30)
        '3 GiB'
    """
    if count >= 2**30:
        return f"{count / 2**30:.3g} GiB"
    return f"{count / 2**20:.3g} MiB"
