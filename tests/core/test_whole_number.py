"""Whole numbers are taken from Python and numpy, and nothing else."""

from typing import Any

import numpy as np
import pytest

import rightbatch as rb
from rightbatch.core.whole_number import whole_number


def test_integers_of_any_kind_are_taken() -> None:
    assert type(whole_number(np.int64(16), "batch_size")) is int
    assert whole_number(0, "workers", least=0) == 0


@pytest.mark.parametrize("value", [True, 2.0, "3", None, 0, -1])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(rb.SettingError, match="batch_size must be") as refused:
        whole_number(value, "batch_size")
    assert refused.value.fix == "batch_size=64"
