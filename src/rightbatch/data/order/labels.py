"""Labels of a data set, from which its strata and classes are made."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from rightbatch.core.errors import SettingError
from rightbatch.data.order.allocation import Counts
from rightbatch.data.order.order import unique


def members(
    labels: Any,
) -> tuple[list[Any], Int64[np.ndarray, " examples"], Counts]:
    """The labels that occur, all examples sorted by label, and how many of each.

    Raises:
        SettingError: They are not one number or word for each example.
    """
    try:
        values = np.asarray(labels)
    except ValueError as error:
        raise SettingError(
            "labels must be one number or word for each example",
            seen=f"a {type(labels).__name__}",
            fix="the labels alone, not the data set: [y for _, y in data], or the "
            "array from which it is made",
        ) from error
    if values.ndim != 1 or not len(values):
        raise SettingError(
            "labels must have one axis, of examples",
            seen=f"shape {values.shape}",
            fix="one label for each example; for multi-label data its rarest",
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise SettingError(
            "labels must not be NaN",
            seen=f"{int((~np.isfinite(values)).sum())} are",
        )
    names, inverse, sizes = unique(values, "labels")
    order = np.argsort(inverse, kind="stable")
    return names.tolist(), order, sizes.astype(np.int64)


def check_shares(values: Any, count: int, what: str) -> Float64[np.ndarray, " n"]:
    """Numbers that can be shares of a whole, as an array.

    Raises:
        SettingError: They cannot.
    """
    shares = np.asarray(values, dtype=np.float64)
    if shares.shape != (count,):
        raise SettingError(
            f"there must be {count} numbers for the {what}",
            seen=f"shape {shares.shape}, expected ({count},)",
        )
    if not (np.isfinite(shares).all() and shares.min() >= 0 and shares.max() > 0):
        raise SettingError(
            f"the {what} must be finite, not negative, and not all zero",
            seen=f"numbers from {shares.min():.4g} to {shares.max():.4g}",
        )
    return shares
