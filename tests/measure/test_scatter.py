"""The scatter of times where there are few of each."""

import numpy as np
import pytest

from rightbatch.measure.scatter import UNKNOWN, pooled_scatter


def test_nothing_repeated_is_known_within_ten_percent() -> None:
    assert pooled_scatter([[1.0], [2.0], [70.0]]) == UNKNOWN


def test_repeated_times_tell_their_own_scatter() -> None:
    random = np.random.default_rng(0)
    groups = [b * np.exp(0.2 * random.normal(size=3)) for b in range(1, 200)]
    assert pooled_scatter(groups) == pytest.approx(0.2, rel=0.1)
