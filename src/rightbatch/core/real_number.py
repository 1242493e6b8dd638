"""Arguments that are finite numbers: shares, factors, seconds."""

from __future__ import annotations

import math
import numbers
from typing import Any

from rightbatch.core.errors import SettingError


def real_number(value: Any, name: str, *, positive: bool = False) -> float:
    """An argument as a finite number; numpy's are taken too.

    Args:
        value: What was given.
        name: How errors call it.
        positive: Whether it must be above zero.

    Raises:
        SettingError: It is no number, not finite, or too small.

    Example:
        >>> real_number(0.5, "exponent")
        0.5
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    least = 0.0 if positive else -math.inf
    if not is_number or not least < float(value) < math.inf:
        kind = "positive and finite" if positive else "a finite number"
        raise SettingError(f"{name} must be {kind}", seen=f"{name}={value!r:.60}")
    return float(value)
