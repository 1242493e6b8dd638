"""Where an error comes from is found, whatever way its causes lead."""

from __future__ import annotations

from rightbatch.core.errors import first_cause


def test_the_first_cause_is_found() -> None:
    first, second, third = KeyError("a"), ValueError("b"), TypeError("c")
    assert first_cause(first) is first
    third.__cause__, second.__cause__ = second, first
    assert first_cause(third) is first


def test_causes_that_lead_back_end() -> None:
    one, two = ValueError("a"), ValueError("b")
    one.__cause__, two.__cause__ = two, one
    assert first_cause(one) is two
    one.__cause__ = one
    assert first_cause(one) is one
