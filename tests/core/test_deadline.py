"""What still fits before a moment."""

import math
from types import SimpleNamespace

import pytest

from rightbatch.core.deadline import Deadline


def test_work_is_allowed_that_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("rightbatch.core.deadline.time", clock)
    now = 5.0
    deadline = Deadline.within(10.0)
    now = 8.0
    assert (deadline.elapsed_s, deadline.left_s) == (3.0, 7.0)
    assert deadline.allows(7.0)
    assert not deadline.allows(7.1)
    now = 16.0
    assert not deadline.allows(0.0)
    assert Deadline.within().allows(1e9)
    assert Deadline.within().left_s == math.inf
