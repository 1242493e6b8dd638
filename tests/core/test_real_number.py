"""Finite numbers are taken from Python, numpy and fractions, and nothing else."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import rightbatch as rb
from rightbatch.core.real_number import real_number


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2)]
)
def test_numbers_of_any_kind_are_taken(value: Any) -> None:
    number = real_number(value, "exponent", positive=True)
    assert (type(number), number) == (float, 0.5)
    assert real_number(np.int64(-2), "exponent") == -2.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "2", None, True, 1j])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(rb.SettingError, match="exponent must be a finite number"):
        real_number(value, "exponent")


@pytest.mark.parametrize("value", [0, -1.0, np.float32(0), math.nan])
def test_what_must_be_positive_is(value: Any) -> None:
    with pytest.raises(rb.SettingError, match="clip_norm must be positive and finite"):
        real_number(value, "clip_norm", positive=True)
