"""Two numbers of a network are found again from timed all-reduces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb
from rightbatch.cluster.network import LinkPoint, Network, fit_network


@settings(max_examples=30, deadline=None)
@given(st.floats(1e8, 1e12), st.floats(1e-7, 1e-3), st.integers(2, 64))
def test_a_network_is_found_again(bandwidth: float, latency: float, n: int) -> None:
    """Whether ring or tree was the faster: times between the sizes within 5 %."""
    truth = Network(bandwidth=bandwidth, latency_s=latency)
    sizes = (2**10, 2**16, 2**20, 2**24, 2**28)
    points = [
        LinkPoint(bytes=s, devices=n, seconds=truth.all_reduce_s(s, n)) for s in sizes
    ]
    found = fit_network(points)
    for size in (2**12, 2**18, 2**22, 2**27):
        expected = truth.all_reduce_s(size, n)
        assert found.all_reduce_s(size, n) == pytest.approx(expected, rel=0.05)


def test_networks_that_cannot_be_are_refused() -> None:
    for bandwidth, latency in ((0.0, 1e-5), (1e9, -1.0), (float("nan"), 1e-5)):
        with pytest.raises(rb.SettingError, match="positive bandwidth"):
            Network(bandwidth=bandwidth, latency_s=latency)
    with pytest.raises(rb.UnidentifiedError):
        fit_network([LinkPoint(bytes=8, devices=1, seconds=1.0)] * 3)
    alone = Network(bandwidth=1e10, latency_s=1e-5)
    assert alone.all_reduce_s(1e9, 1) == 0.0
