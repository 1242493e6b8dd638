"""Planning for many devices: the best split, and where to stop."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb
from rightbatch.cluster.devices import (
    Fleet,
    Split,
    _lost_to,
    elastic_batch,
    plan_cluster,
    world_sizes,
)
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
    least: int = 1,
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
        smallest=least,
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
    split = f.best_split(devices)
    assert split is not None
    micros = sorted({2**i for i in range(most.bit_length())} | {most})
    splits = itertools.product(micros, [2**i for i in range(7)])
    best = min(
        slow_seconds(f, devices, b, k)
        for b, k in splits
        if devices * b * k <= f.examples
    )
    assert f.total_s(split) == pytest.approx(best, rel=1e-9)
    assert split.batch_size == devices * split.micro_batch * split.accumulation
    assert split.micro_batch <= most


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


@pytest.mark.parametrize(
    ("more", "allowed"),
    [
        ({"least": 2}, {2, 4, 8, 16, 32, 64}),  # as where BatchNorm fails at 1
        ({"least": 5, "most": 40}, {5, 8, 16, 32, 40}),
        ({"allowed": (1, 2, 8, 64)}, {1, 2, 8, 64}),  # one in between failed
        ({"allowed": (24,)}, {24}),  # examples that touch
    ],
)
def test_nothing_is_planned_that_was_not_timed(
    more: dict[str, Any], allowed: set[int]
) -> None:
    """However many devices: rather a larger batch, or no row at all."""
    f = fleet(critical=50, examples=1000, **more)
    planned = plan_cluster(f, [2**i for i in range(11)])
    assert {row.micro_batch for row in planned.rows} <= allowed
    assert all(row.batch_size <= 1000 for row in planned.rows)
    assert planned.rows[-1].devices == max(
        2**i for i in range(11) if 2**i * min(allowed) <= 1000
    )
    batch, sizes = elastic_batch(f, planned.rows[-1], 1024)
    assert all(batch // n >= min(allowed) and batch % n == 0 for n in sizes)
    if len(allowed) == 1:
        assert all(batch % (24 * n) == 0 for n in sizes)


def test_a_refusal_names_what_a_device_needs() -> None:
    with pytest.raises(rb.SettingError, match="data parallel") as refused:
        plan_cluster(fleet(least=16, examples=1000), [64])
    assert "1,000 examples, 16 at the least" in str(refused.value)
    planned = plan_cluster(fleet(critical=1e6, least=16, examples=1000), [32, 64])
    assert [row.devices for row in planned.rows] == [32]
    assert "a device takes 16 of a step at the least" in planned.reason


@pytest.mark.parametrize("below", [2, 8, 30])
@pytest.mark.parametrize("t0", [1e-9, 1e-3, 1.0])
def test_a_step_below_what_was_timed_is_widened(t0: float, below: int) -> None:
    """No longer than the smallest timed, no cheaper an example; and all between."""
    f = fleet(t0=t0, least=60, most=60, critical=1e9)
    smallest = f.time.seconds(60)
    step = [f.time.seconds(60 / below, draw) / smallest for draw in range(400)]
    assert 1 / below - 1e-9 <= min(step) <= max(step) <= 1 + 1e-9
    interval = f.time_to_result(Split(1000, 60 // below, 1))
    timed = f.time_to_result(Split(1000, 60, 1))
    assert interval.high / interval.low > timed.high / timed.low
    assert np.log(np.quantile(step, 0.975) / np.quantile(step, 0.025)) == pytest.approx(
        0.74 * np.log(below), rel=0.15
    )


def test_a_fleet_is_never_sure_though_its_laws_have_one_draw() -> None:
    f = fleet()
    one = NoiseLaw(f.noise.critical_batch, np.array([1000.0]))
    time = plan_cluster(dataclasses.replace(f, noise=one), [512]).rows[0].time
    assert time.low < 0.8 * time.value < 1.25 * time.value < time.high


def test_a_critical_batch_without_end_is_not_blamed() -> None:
    endless = NoiseLaw(
        Estimate(value=np.inf, low=500.0, high=np.inf, unit="examples"),
        np.full(50, np.inf),
    )
    powers = [2**i for i in range(0, 13, 3)]
    slow = Network(bandwidth=1e6, latency_s=1e-3)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"network": slow, "examples": 10**9}, "network"),
        ({"examples": 2**12, "t0": 1e-2}, "data"),
        ({"evaluation_s": 50.0, "examples": 10**9}, "evaluation"),
    ]
    for more, cause in cases:
        f = dataclasses.replace(fleet(**more), noise=endless)
        planned = plan_cluster(f, powers)
        assert cause in {row.lost_to for row in planned.rows}
        assert "B_crit" not in {row.lost_to for row in planned.rows}
        assert "critical batch" not in planned.reason


def test_nothing_is_blamed_whose_absence_would_not_help() -> None:
    """A fleet that follows no law known here is as slow without any of the causes."""
    f = fleet(critical=1e12, t0=1e-9, examples=10**12)
    assert _lost_to(f, 64) == ""


def test_evaluations_are_a_share_that_grows_with_the_devices() -> None:
    f = fleet(critical=1e5, examples=10**7, evaluation_s=2.0)
    rows = plan_cluster(f, [1, 8, 64, 512]).rows
    for row in rows:
        training_s = f.steps_at(row.batch_size) * row.step_time_s
        assert row.time.value == pytest.approx(training_s + 2.0)
        assert row.evaluation == pytest.approx(2.0 / (training_s + 2.0))
    shares = [row.evaluation for row in rows]
    assert shares == sorted(shares)
    assert shares[0] < 0.4 < 0.9 < shares[-1]
    put_off = dataclasses.replace(f, evaluation_share=0.2)
    assert plan_cluster(put_off, [512]).rows[0].evaluation == pytest.approx(1 / 6)
    unknown = dataclasses.replace(f, steps=None)
    assert plan_cluster(unknown, [512]).rows[0].evaluation == 0.0


def test_batches_that_nobody_ran_are_marked() -> None:
    f = fleet(critical=1e4, largest_trained=100)
    rows = plan_cluster(f, [1, 2, 64, 512]).rows
    assert [row.beyond for row in rows] == [row.batch_size > 100 for row in rows]
    assert rows[-1].beyond
    assert not any(r.beyond for r in plan_cluster(fleet(critical=1e4), [512]).rows)


def test_what_is_not_known_makes_a_range_of_devices_that_pay() -> None:
    planned = plan_cluster(fleet(), [2**i for i in range(12)])
    low, high = planned.pays_range
    assert low <= planned.pays_up_to <= high
    assert low < high
