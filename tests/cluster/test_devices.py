"""Planning for many devices: the best split, and where to stop."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb
from rightbatch.cluster.devices import Fleet, elastic_batch, plan_cluster, world_sizes
from rightbatch.cluster.network import Network
from rightbatch.core.estimate import Estimate
from rightbatch.fit.critical_batch import NoiseLaw
from rightbatch.fit.step_time import TimeLaw

NETWORK = Network(bandwidth=10e9, latency_s=10e-6)


def fleet(
    critical: float = 1000.0,
    t0: float = 1e-3,
    t1: float = 1e-4,
    most: int = 64,
    **more: Any,
) -> Fleet:
    parameters = np.array([t0, t1])
    law = TimeLaw(
        kind="affine",
        parameters=parameters,
        draws=np.tile(parameters, (50, 1)),
        held_out={},
        update_s=0.2 * t0,
        clock="wall",
        smallest=1,
        largest=most,
        n=6,
    )
    draws = critical * np.exp(0.1 * np.random.default_rng(0).standard_normal(50))
    noise = NoiseLaw(Estimate.exact(critical, "examples"), draws)
    usual: dict[str, Any] = {
        "examples": 10**6,
        "gradient_bytes": 4e6,
        "network": NETWORK,
        "reference": 32,
        "steps": 1000,
    }
    return Fleet(time=law, noise=noise, most=most, **{**usual, **more})


def slow_seconds(f: Fleet, n: int, b: int, k: int) -> float:
    """The same in one line each, for an affine law."""
    t0, t1 = f.time.parameters
    batch = n * b * k
    compute = (t0 + t1 * b) + (k - 1) * (t0 + t1 * b - f.time.update_s)
    link = f.network
    ring = 2 * (n - 1) * (f.gradient_bytes / n / link.bandwidth + link.latency_s)
    hops = sum(2**i < n for i in range(30))
    tree = 2 * f.gradient_bytes / link.bandwidth + 2 * hops * link.latency_s
    exchange = 0.0 if n == 1 else min(ring, tree)
    exposed = max(exchange - 0.6 * (t0 + t1 * b - f.time.update_s), 0.0)
    critical = f.noise.critical_batch.value
    steps = 1000 * (1 + critical / batch) / (1 + critical / f.reference)
    return steps * (compute + exposed)


@settings(max_examples=40, deadline=None)
@given(
    st.floats(10, 1e5),
    st.floats(1e-5, 1e-1),
    st.sampled_from([1, 2, 3, 8, 64, 1000]),
    st.sampled_from([1, 7, 64]),
)
def test_the_split_is_the_best_of_all(
    critical: float, t0: float, devices: int, most: int
) -> None:
    f = fleet(critical, t0, most=most)
    row = plan_cluster(f, [devices]).rows[0]
    micros = sorted({2**i for i in range(most.bit_length())} | {most})
    splits = itertools.product(micros, [2**i for i in range(7)])
    best = min(
        slow_seconds(f, devices, b, k)
        for b, k in splits
        if devices * b * k <= f.examples
    )
    assert row.time.value == pytest.approx(best, rel=1e-9)
    assert row.batch_size == devices * row.micro_batch * row.accumulation
    assert row.micro_batch <= most


def test_where_it_stops_and_why() -> None:
    """A small critical batch, a slow network, and neither."""
    powers = [2**i for i in range(11)]
    small = plan_cluster(fleet(critical=100), powers)
    assert "critical batch (100 examples)" in small.reason
    assert small.pays_up_to < 64
    slow = Network(bandwidth=1e8, latency_s=1e-3)
    wired = plan_cluster(fleet(critical=2000, network=slow), powers)
    assert "exchange of gradients" in wired.reason
    wide = plan_cluster(fleet(critical=1e6), [1, 2, 4])
    assert wide.pays_up_to == 4
    assert "each step up" in wide.reason
    for planned in (small, wired, wide):
        times = [r.time.value for r in planned.rows if r.devices <= planned.pays_up_to]
        assert all(a / b >= 1.2 for a, b in itertools.pairwise(times))


def test_energy_and_money_are_devices_times_time() -> None:
    planned = plan_cluster(fleet(watts=300.0, per_hour=2.0), [1, 8])
    for row in planned.rows:
        assert row.joules == pytest.approx(row.time.value * 300 * row.devices)
        assert row.money == pytest.approx(row.time.value / 1800 * row.devices)
    without = plan_cluster(fleet(watts=300.0, steps=None), [1, 8])
    assert without.rows[0].joules is None
    assert without.rows[0].time.value == 1.0
    assert not without.seconds


def test_intervals_come_from_the_laws() -> None:
    rows = plan_cluster(fleet(), [1, 64]).rows
    assert all(r.time.low < r.time.value < r.time.high for r in rows)


def test_a_small_data_set_ends_the_table() -> None:
    planned = plan_cluster(fleet(examples=10), [1, 4, 64])
    assert [r.devices for r in planned.rows] == [1, 4]
    with pytest.raises(rb.SettingError, match="more than there are examples"):
        plan_cluster(fleet(examples=10), [64])
    with pytest.raises(rb.SettingError, match="counted from 1"):
        plan_cluster(fleet(), [])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 200))
def test_world_sizes_divide_the_batch(batch: int, devices: int) -> None:
    assert world_sizes(batch, devices) == [
        n for n in range(1, min(devices, batch) + 1) if batch % n == 0
    ]


def test_an_elastic_batch_is_near_and_has_more_divisors() -> None:
    f = fleet()
    row = plan_cluster(f, [16]).best
    batch, sizes = elastic_batch(f, row, 64)
    assert row.batch_size / 1.1 <= batch <= 1.1 * row.batch_size
    assert len(sizes) >= len(world_sizes(row.batch_size, 64))
    assert all(batch % n == 0 for n in sizes)


def test_the_cause_is_the_want_whose_absence_would_help() -> None:
    """Larger batches against a slow network are the network's fault, not B_crit's."""
    slow = Network(bandwidth=1e7, latency_s=1e-3)
    row = plan_cluster(fleet(critical=500, network=slow), [1, 2]).rows[1]
    assert row.lost_to == "network"
    fixed = plan_cluster(fleet(critical=200, t0=0.1, t1=1e-5), [1, 64]).rows[1]
    assert fixed.lost_to in ("small b", "B_crit")
    assert plan_cluster(fleet(critical=1e6), [1, 2]).rows[1].lost_to == ""


def test_a_step_back_in_between_does_not_end_it() -> None:
    """Two devices over a slow network are slower than one, and 256 worth it."""
    slow = Network(bandwidth=1e8, latency_s=1e-3)
    planned = plan_cluster(
        fleet(critical=1e5, network=slow, gradient_bytes=4e8, examples=10**8),
        [2**i for i in range(11)],
    )
    times = {r.devices: r.time.value for r in planned.rows}
    best = planned.pays_up_to
    assert all(
        times[best] / times[n] < 1.2 ** np.log2(n / best) for n in times if n > best
    )
