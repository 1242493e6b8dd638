"""Four trials find the boundary, whatever malloc and kernels take."""

from __future__ import annotations

from typing import Any

import pytest

from memory_jobs import CPU, MIB
from rightbatch.memory.boundary import Search, malloc_hoards
from rightbatch.memory.envelope import Envelope, Segment
from rightbatch.memory.trial import Trial

TWO_PARTS = Envelope(
    segments=(
        Segment(constant=20 * MIB, linear=1000),
        Segment(constant=MIB, linear=40_000),
    ),
    method="made up",
)


@pytest.mark.parametrize("fixed", [0, 25 * MIB])
@pytest.mark.parametrize("scratch", [1.0, 1.12])
@pytest.mark.parametrize(
    ("hoards", "tax"), [(True, 1.0), (True, 1.2), (True, 1.9), (False, 1.0)]
)
def test_four_trials_find_the_boundary(
    tax: float, fixed: int, scratch: float, hoards: bool
) -> None:
    """A made-up process that takes ``fixed + tax * scratch * peak``: 97 % of it."""
    limit = 200 * MIB

    def taken(size: int) -> float:
        return fixed + tax * scratch * TWO_PARTS.peak(size)

    def make_trial(size: int, exact: bool) -> Trial:
        fits = taken(size) <= limit
        return Trial(
            micro_batch=size,
            fits=fits,
            taken=round(taken(size)) if fits else 0,
            allocated=round(scratch * TWO_PARTS.peak(size)) if fits and exact else 0,
        )

    search = Search(
        make_trial, TWO_PARTS, limit=limit, most=10**6, hoards=hoards, patience_s=60.0
    )
    assert search.run(print) == ""
    boundary = max(size for size in range(1, 6000) if taken(size) <= limit)
    assert len(search.trials) <= 4
    assert 0.97 * boundary <= search.largest <= boundary


def searched(
    outcome: Any, linear: float = 1, most: int = 2000, patience_s: float = 60.0
) -> tuple[Search, str]:
    """A search whose trials end as ``outcome(size)`` says, by a law without worries."""
    law = Envelope(segments=(Segment(constant=0, linear=linear),), method="made up")
    search = Search(
        lambda size, exact: Trial(micro_batch=size, **outcome(size)),
        law,
        limit=100 * MIB,
        most=most,
        hoards=False,
        patience_s=patience_s,
    )
    return search, search.run(print)


def test_steps_that_would_take_too_long_are_not_tried() -> None:
    """Made-up steps of 1 ms an example: the second and larger one would take 17 s."""

    def outcome(size: int) -> dict[str, Any]:
        return {"fits": True, "taken": 6_000 * size, "seconds": size / 1000}

    search, why = searched(outcome, 6_000, 10**6, patience_s=4.0)
    assert "patience" in why
    assert search.best is search.trials[0]
    assert len(search.trials) == 1


def test_where_the_law_is_wrong_steps_get_smaller_until_one_runs() -> None:
    for boundary in (1, 2, 7, 100, 999, 1999):
        search, why = searched(
            lambda size, b=boundary: {"fits": size <= b, "taken": size}
        )
        assert why == ""
        assert 0.5 * boundary < search.largest <= boundary
        assert any(t.micro_batch == search.largest and t.fits for t in search.trials)


def test_where_nothing_runs_there_is_no_answer() -> None:
    search, why = searched(lambda size: {"fits": False})
    assert (search.largest, why) == (0, "no step fitted")
    assert search.trials[-1].micro_batch == 1


def test_a_step_too_slow_is_passed_over_where_memory_ran_out() -> None:
    slow = {"fits": None, "late": True, "seen": "it took more than 60 s"}
    search, why = searched(lambda size: slow)
    assert (search.largest, len(search.trials)) == (2000, 1)
    assert "took more than" in why
    search, why = searched(
        lambda size: (
            {"fits": False}
            if size > 1500
            else slow
            if size > 300
            else {"fits": True, "taken": 1}
        )
    )
    assert search.best is not None
    assert search.largest <= 300


def test_where_the_job_fails_the_first_step_that_runs_is_the_answer() -> None:
    def outcome(size: int) -> dict[str, Any]:
        if size > 100:
            return {"fits": None, "seen": f"ValueError: {size}"}
        return {"fits": True, "taken": 1}

    search, why = searched(outcome)
    assert [t.micro_batch for t in search.trials] == [2000, 1000, 500, 250, 125, 62]
    assert search.largest == 62
    assert "ValueError: 125" in why
    search, why = searched(lambda size: {"fits": None, "seen": "ValueError: no"})
    assert search.failure is search.trials[-1]
    assert "ValueError: no" in why


def test_malloc_gives_back_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    assert malloc_hoards(CPU)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    assert not malloc_hoards(CPU)
