"""Peaks measured at two sizes and more."""

import pytest

from rightbatch.memory.envelope import fit_points
from rightbatch.memory.points import MemoryPoint


def test_the_line_of_memory_is_safe_above() -> None:
    """A peak is convex: max(100 + b, 40 + 3 b). The upper line never falls short."""

    def peak(b: int) -> int:
        return max(100 + b, 40 + 3 * b)

    law = fit_points(
        [MemoryPoint(micro_batch=b, peak_memory_bytes=peak(b)) for b in (1, 8, 64, 128)]
    )
    assert law.peak(4096) == pytest.approx(peak(4096))
    assert law.largest(1000) == 320
    assert law.largest(10) == 0
