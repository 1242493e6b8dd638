"""The highest of many lines: its inversion, its bends, and its fits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb
from memory_jobs import job_of, law_of
from rightbatch.memory.envelope import (
    Envelope,
    Segment,
    check_room,
    fit_envelope,
    fit_points,
)
from rightbatch.memory.points import MemoryPoint
from rightbatch.memory.traced_step import StepTrace

segments = st.lists(
    st.builds(
        Segment,
        constant=st.floats(0, 1e6),
        linear=st.floats(0, 1e4),
        square=st.sampled_from([0.0, 0.0, 1e-3, 2.0]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(segments, st.floats(1, 1e8))
def test_the_largest_batch_is_the_last_within_the_limit(
    parts: list[Segment], limit: float
) -> None:
    law = Envelope(segments=tuple(parts), method="made up")
    largest = law.largest(limit)
    slack = 1e-9 * limit  # of rounding in the roots
    if largest:
        assert law.peak(largest) <= limit + slack
    if largest < 2**30:
        assert law.peak(largest + 1) > limit - slack


@settings(max_examples=100, deadline=None)
@given(segments)
def test_changes_are_where_another_segment_is_highest(parts: list[Segment]) -> None:
    law = Envelope(segments=tuple(parts), method="made up")
    changes = law.changes(500)
    for batch in (1, 2, 7, 63, 64, 65, 499):
        binding = [segment for first, segment in changes if first <= batch][-1]
        assert binding.at(batch) == pytest.approx(law.peak(batch), rel=1e-9, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 300))
def test_fitting_keeps_every_operation_that_binds(seed: int, count: int) -> None:
    """Against the maximum over all of them, at batches nobody has traced."""
    random = np.random.default_rng(seed)
    a = random.integers(0, 10**6, count)
    b = random.integers(0, 10**4, count)
    c = np.where(random.random(count) < 0.1, random.integers(0, 50, count), 0)
    traces = [
        StepTrace(
            micro_batch=size,
            operations=tuple(map(str, range(count))),
            places=("forward",) * count,
            bytes=tuple(int(x) for x in a + b * size + c * size * size),
            wasted=(0,) * count,
            parameters=0,
            buffers=0,
            gradients=0,
            state=0,
            unit=0,
        )
        for size in (2, 4, 8)
    ]
    law = fit_envelope(traces)
    for batch in (1, 5, 100, 3001, 77_777, 10**6):
        truth = float((a + b * batch + c * batch * batch).max())
        assert law.peak(batch) == pytest.approx(truth, rel=1e-4)


def test_measured_peaks_are_joined_by_lines_that_are_never_too_low() -> None:
    def peak(b: int) -> int:
        return max(100 + b, 40 + 3 * b)

    law = fit_points(
        [MemoryPoint(micro_batch=b, peak_memory_bytes=peak(b)) for b in (1, 8, 64, 128)]
    )
    assert all(law.peak(b) >= peak(b) - 1e-9 for b in range(1, 4097))
    assert law.peak(4096) == pytest.approx(peak(4096))
    assert law.largest(1000) == 320
    assert law.largest(10) == 0
    with pytest.raises(rb.UnidentifiedError, match="at least 2"):
        fit_points([MemoryPoint(micro_batch=1, peak_memory_bytes=1)])


def test_several_ranks_add_buckets_or_share_the_weights() -> None:
    law = law_of(job_of())
    ddp = law.on_ranks(4, sharded=False)
    assert ddp.peak(1000) == law.peak(1000) + law.gradients
    shared = law.on_ranks(4, sharded=True)
    assert shared.parameters == round(law.parameters / 4)
    assert "modelled" in shared.method


def test_a_limit_below_one_example_is_refused_with_what_is_known() -> None:
    law = Envelope(segments=(Segment(constant=100, linear=1),), method="made up")
    check_room(law, 101)
    with pytest.raises(rb.SettingError, match="not even one example") as caught:
        check_room(law, 100)
    assert "parameters" not in str(caught.value)  # of measured points nothing is known
