"""Arguments that are whole numbers: of examples, steps, workers."""

from __future__ import annotations

import operator
from typing import Any

from rightbatch.core.errors import SettingError


def whole_number(value: Any, name: str, least: int = 1) -> int:
    """An argument as an integer; numpy's integers are taken too.

    Args:
        value: What was given.
        name: How errors call it.
        least: The smallest that makes sense.

    Raises:
        SettingError: It is no integer, or too small.

    Example:
        >>> whole_number(64, "batch_size")
        64
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError as error:
        raise SettingError(
            f"{name} must be an integer", seen=f"{name}={value!r}", fix=f"{name}=64"
        ) from error
    if number < least:
        raise SettingError(
            f"{name} must be at least {least}",
            seen=f"{name}={number}",
            fix=f"{name}={max(64, least)}",
        )
    return number


def keep_whole_numbers(holder: object, *names: str, least: int = 1) -> None:
    """Check fields of a dataclass, and keep them as Python's integers.

    Args:
        holder: Frozen or not; a field that is None was left out.
        names: Of the fields.
        least: The smallest that makes sense.

    Raises:
        SettingError: One is no integer, or too small.
    """
    for name in names:
        given = getattr(holder, name)
        if given is not None:
            object.__setattr__(holder, name, whole_number(given, name, least))
