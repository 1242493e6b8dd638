"""Four trials find the boundary, whatever malloc and kernels take."""

from __future__ import annotations

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
    assert search.run(lambda text: None) == ""
    boundary = max(size for size in range(1, 6000) if taken(size) <= limit)
    assert len(search.trials) <= 4
    assert 0.97 * boundary <= search.largest <= boundary


def test_steps_that_would_take_too_long_are_not_tried() -> None:
    """Made-up steps of 1 ms an example: the first 7,000 or so fit into 10 seconds."""
    law = Envelope(segments=(Segment(constant=0, linear=6_000),), method="made up")

    def make_trial(size: int, exact: bool) -> Trial:
        return Trial(
            micro_batch=size, fits=True, taken=6_000 * size, seconds=size / 1000
        )

    search = Search(
        make_trial, law, limit=100 * MIB, most=10**6, hoards=True, patience_s=10.0
    )
    assert "patience" in search.run(lambda text: None)
    assert len(search.trials) == 1
    assert search.best is search.trials[0]


def test_malloc_gives_back_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    assert malloc_hoards(CPU)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    assert not malloc_hoards(CPU)
