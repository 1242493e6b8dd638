"""Checks can fail, and say which planted errors they would let through."""

import math

import pytest

from rightbatch.core.estimate import Estimate
from rightbatch.lab.check import Check, at_least, at_most, equals, verdict


def measured(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.1, high=value + 0.1)


def test_a_number_within_its_margin_passes_and_one_beyond_does_not() -> None:
    assert equals("x", 2.0, measured(2.1), within=0.1, wrong={}).passes
    assert equals("x", 2.0, measured(1.9), margin=0.11, wrong={}).passes
    assert not equals("x", 2.0, measured(2.3), within=0.1, wrong={}).passes
    assert not equals("x", -2.0, measured(-2.3), within=0.1, wrong={}).passes
    assert equals("x", -2.0, measured(-2.1), within=0.1, wrong={}).passes


def test_bounds_hold_on_one_side() -> None:
    assert at_least("x", 0.7, measured(0.8), wrong={}).passes
    assert not at_least("x", 0.7, measured(0.6), wrong={}).passes
    assert at_most("x", 0.7, measured(0.6), wrong={}).passes
    assert not at_most("x", 0.7, measured(0.8), wrong={}).passes


def test_what_is_not_finite_never_passes() -> None:
    nan = Estimate(value=math.inf, low=0.0, high=math.inf)
    assert not equals("x", 1.0, nan, within=0.1, wrong={}).passes
    assert not at_least("x", 1.0, nan, wrong={}).passes


def test_a_planted_error_that_would_pass_is_named() -> None:
    check = equals(
        "x", 1.0, measured(1.05), within=0.1, wrong={"far": 2.0, "near": 1.1}
    )
    assert check.missed == ("near",)
    bound = at_least("x", 0.7, measured(0.9), wrong={"control": 0.1, "blind": 0.8})
    assert bound.missed == ("blind",)


def part(name: str, passes: bool) -> Check:
    return equals("x", 1.0, 1.0 if passes else 2.0, wrong={}, part=name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ([part("claim", True)], "holds"),
        ([part("claim", True), part("limit", True)], "holds if"),
        ([part("claim", True), part("limit", False)], "not reproduced"),
        ([part("claim", False)], "not reproduced"),
        ([part("claim", False), part("correction", True)], "fails as written"),
        ([part("claim", False), part("correction", False)], "not reproduced"),
        (
            [part("claim", True), part("claim", False), part("correction", True)],
            "fails as written",
        ),
        (
            [part("claim", False), part("correction", True), part("limit", False)],
            "not reproduced",
        ),
    ],
)
def test_what_the_checks_come_to(checks: list[Check], expected: str) -> None:
    assert verdict(tuple(checks)) == expected
