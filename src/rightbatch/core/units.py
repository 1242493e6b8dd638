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
    "b": 1,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}


def parse_seconds(text: str) -> float:
    """Seconds from ``"90"``, ``"2h"`` or ``"1.5min"``.

    Raises:
        SettingError: It is neither, or not positive.

    Example:
        >>> parse_seconds("2h")
        7200.0
    """
    return _parse(text, SECONDS, "a duration", "90, 30s, 10min, 2h")


def parse_bytes(text: str) -> float:
    """Bytes from ``"16GiB"`` or ``"500MB"``; the unit is required.

    Raises:
        SettingError: It is neither, or not positive.

    Example:
        >>> parse_bytes("1KiB")
        1024.0
    """
    if text.strip()[-1:].isdigit():
        raise SettingError(f"{text!r} lacks a unit of memory", fix="16GiB, 500MB")
    return _parse(text, BYTES, "an amount of memory", "16GiB, 500MB")


def parse_latency(text: str) -> float:
    """Seconds from ``"20us"`` or ``"0.1ms"``; the unit is required.

    Raises:
        SettingError: It is neither, or negative.

    Example:
        >>> round(1e6 * parse_latency("20us"))
        20
    """
    if text.strip()[-1:].isdigit():
        raise SettingError(f"{text!r} lacks a unit of time", fix="20us, 0.1ms")
    if re.fullmatch(r"\s*0+(\.0+)?\s*(us|ms|s)\s*", text):
        return 0.0
    return _parse(text, SECONDS, "a latency", "20us, 0.1ms")


def parse_bandwidth(text: str) -> float:
    """Bytes per second from ``"400Gb/s"`` (bits) or ``"50GB/s"`` (bytes).

    Raises:
        SettingError: It is neither, or not positive.

    Example:
        >>> parse_bandwidth("400Gb/s")
        50000000000.0
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kMGT])([bB])/s\s*", text)
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    if match is None or not number > 0:
        raise SettingError(
            f"{text!r} is not a bandwidth", fix="400Gb/s (bits), 50GB/s (bytes)"
        )
    return number * scale[match[2]] / (8 if match[3] == "b" else 1)


def _parse(
    text: str, units: dict[str, float] | dict[str, int], what: str, forms: str
) -> float:
    match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    unit = match.group(2).lower() if match else ""
    try:
        number = float(match.group(1)) if match else math.nan
    except ValueError:
        number = math.nan
    if not number > 0 or (unit and unit not in units):
        raise SettingError(f"{text!r} is not {what}", fix=forms)
    return number * float(units[unit] if unit else 1)


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
