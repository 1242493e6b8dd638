"""Labels of a data set, from which its strata and classes are made."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from rightbatch.core.errors import SettingError
from rightbatch.data.order.allocation import Counts
from rightbatch.data.order.composition import unique, whole


def members(
    labels: Any,
) -> tuple[list[Any], Int64[np.ndarray, " examples"], Counts]:
    """The labels that occur, all examples sorted by label, and how many of each."""
    try:
        found = np.asarray(labels)
    except ValueError as error:
        raise SettingError(
            "labels must be one number or word for each example",
            seen=f"a {type(labels).__name__}",
            fix="the labels alone, not the data set: [y for _, y in data], or the "
            "array from which it is made",
        ) from error
    if found.ndim != 1 or not len(found):
        raise SettingError(
            "labels must have one axis, of examples",
            seen=f"shape {found.shape}",
            fix="for multi-label data: Strata.by_rarest_label; "
            "for numbers: Strata.by_quantiles",
        )
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise SettingError(
            "labels must not be NaN",
            seen=f"{int((~np.isfinite(found)).sum())} are",
        )
    names, inverse, sizes = unique(found, "labels")
    order = np.argsort(inverse, kind="stable")
    return names.tolist(), order, sizes.astype(np.int64)


def quantiles(values: Any, strata: int) -> Int64[np.ndarray, " examples"]:
    """Strata of equally many examples of similar value; ties stay together.

    Raises:
        SettingError: A value is NaN or infinite, or they have no one axis.
    """
    found = np.asarray(values, dtype=np.float64)
    if not np.isfinite(found).all():
        bad = np.flatnonzero(~np.isfinite(found))
        raise SettingError(
            "targets must be finite to be sorted into strata",
            seen=f"{len(bad)} are not, the first is example {bad[0]}",
        )
    if found.ndim != 1 or not len(found):
        raise SettingError(
            "targets must have one axis, of examples", seen=f"shape {found.shape}"
        )
    most = whole(strata, "strata")
    _, place, sizes = np.unique(found, return_inverse=True, return_counts=True)
    # Each value goes by the middle of its examples in the sorted order.
    middle = np.cumsum(sizes) - sizes / 2
    return (middle / len(found) * most).astype(np.int64)[place]


def rarest(labels: Any) -> Int64[np.ndarray, " examples"]:
    """Of several labels of an example the rarest; -1 where it has none.

    Raises:
        SettingError: They are not zeros and ones of shape ``(examples, labels)``.
    """
    try:
        given = np.asarray(labels)
    except ValueError as error:
        raise SettingError(
            "every example must have as many labels",
            seen=str(error),
            fix="zeros and ones, shape (examples, labels)",
        ) from error
    if given.ndim != 2 or not len(given):
        raise SettingError(
            "multi-label data has an axis of examples and one of labels",
            seen=f"shape {given.shape}",
        )
    found = given == 1
    if not (found | (given == 0)).all():
        row, column = np.argwhere(~found & (given != 0))[0]
        raise SettingError(
            "multi-label data is zeros and ones",
            seen=f"{given[row, column]!r} at example {row}, label {column}",
            fix="labels >= 0.5 for soft ones",
        )
    frequency = found.sum(0)
    least = np.where(found, frequency, np.iinfo(np.int64).max).argmin(1)
    return np.where(found.any(1), least, -1)


def finite(values: Any, count: int, what: str) -> Float64[np.ndarray, " n"]:
    """Numbers that can be shares.

    Raises:
        SettingError: They cannot.
    """
    found = np.asarray(values, dtype=np.float64)
    bad = ""
    if found.shape != (count,):
        bad = f"shape {found.shape}, expected ({count},)"
    elif not np.isfinite(found).all():
        bad = f"{int((~np.isfinite(found)).sum())} NaN or infinite"
    elif (found < 0).any():
        bad = f"the smallest is {found.min():.4g}"
    elif not found.sum() > 0:
        bad = "all are zero"
    if bad:
        raise SettingError(
            f"the {what} must be finite, not negative, and not all zero", seen=bad
        )
    return found
