"""Durations and sizes are read and shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rightbatch as rb
from rightbatch.core.units import DURATION, MEMORY, show_seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("30s", 30), ("1.5min", 90), ("2h", 7200)]
)
def test_durations(text: str, seconds: float) -> None:
    assert DURATION.parse(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-3s", "2 parsecs", "1.2.3", "nan", "h"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(rb.SettingError):
        DURATION.parse(text)


def test_sizes() -> None:
    assert MEMORY.parse("16GiB") == 16 * 2**30
    assert MEMORY.parse("500 MB") == 5e8


@given(st.floats(1e-9, 1e9))
def test_shown_seconds_are_short(seconds: float) -> None:
    assert len(show_seconds(seconds)) <= 12
