"""Measuring takes no more time than it may."""

import math

import pytest

from rightbatch.noise.overhead import Budget


@pytest.mark.parametrize(
    ("extra", "expected"), [(0.1, 0.14), (0.01, 0.5), (1.0, 0.014)]
)
def test_the_budget_is_kept(extra: float, expected: float) -> None:
    # A step takes 1 s, a measured one more: 1.4 % buys one in extra / 0.014 steps.
    now = 0.0
    budget = Budget(0.02, lambda: now)
    for _ in range(3000):
        kind = "norms" if budget.affords("norms") else ""
        now += 1.0 + (extra if kind else 0.0)
        budget.step(kind)
    assert budget.cost is not None
    assert budget.cost <= 0.02 + 4 * extra / 3000
    assert budget.measured / 3000 == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("extra", [0.0, 0.01])
def test_a_plain_step_is_always_between(extra: float) -> None:
    """Also where ranks agree on an interval; without a budget there is no need."""
    now = 0.0
    budget, free = Budget(0.5, lambda: now), Budget(math.inf, lambda: now)
    for step in range(20):
        assert free.affords("norms")
        for one in (budget, free):
            one.step("norms" if step % 2 or one is free else "")
        now += 1.0 + extra * (step % 2)
    assert budget.interval("norms") == 2.0
    assert free.interval("norms") == 1.0


def test_a_machine_busy_for_a_moment_does_not_make_measuring_free() -> None:
    """Every step was measured from then on, and no plain one timed anew."""
    now = 0.0
    budget, kinds = Budget(0.02, lambda: now), list[str]()
    for step in range(3000):
        kind = "norms" if budget.affords("norms") else ""
        now += (3.0 if 100 <= step < 120 else 1.0) + (0.5 if kind else 0.0)
        budget.step(kind)
        kinds.append(kind)
    late = kinds[1000:]
    assert sum(map(bool, late)) / len(late) <= 1.1 * 0.014 / 0.5
