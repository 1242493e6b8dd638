"""Planning for many devices: the best split, where to stop, and published laws."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb
from cases import made_up, rightbatch
from rightbatch.cli.cluster import parse_devices
from rightbatch.cluster.devices import Fleet, elastic_batch, plan_cluster, world_sizes
from rightbatch.cluster.mlperf import from_mllog, from_rcp_json
from rightbatch.cluster.network import Network, fit_network
from rightbatch.cluster.network_time import LinkPoint
from rightbatch.cluster.published import (
    PUBLISHED,
    language_model,
    noise_of,
    published,
)
from rightbatch.core.estimate import Estimate
from rightbatch.core.units import parse_bandwidth
from rightbatch.fit.critical_batch import NoiseLaw
from rightbatch.fit.step_time import TimeLaw
from test_memory import ENVIRONMENT

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
    noise = NoiseLaw(Estimate.exact(critical, "examples"), draws, "plain")
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
    found = world_sizes(batch, devices)
    assert found == [n for n in range(1, min(devices, batch) + 1) if batch % n == 0]


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


# Networks


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
    assert NETWORK.all_reduce_s(1e9, 1) == 0.0


def test_words_for_devices_and_links() -> None:
    assert parse_devices("1..8,12") == [1, 2, 4, 8, 12]
    assert parse_devices("3..20") == [3, 6, 12, 20]
    assert parse_bandwidth("400Gb/s") == 50e9
    assert parse_bandwidth("50GB/s") == 50e9
    for wrong in ("0..4", "8..2", "x", "", "1..99999999"):
        with pytest.raises(rb.SettingError):
            parse_devices(wrong)
    for wrong in ("400", "400Gbps", "-1Gb/s", "..Gb/s"):
        with pytest.raises(rb.SettingError):
            parse_bandwidth(wrong)


# What others published


def test_published_laws_have_a_domain_and_a_source() -> None:
    for law in PUBLISHED:
        assert law.low < law.critical_batch < law.high
        assert law.smallest < law.largest
        assert law.source
        assert f"{law.largest:,}" in law.domain
    assert published("resnet").critical_batch == 47240
    for law in PUBLISHED[-5:]:  # the line through them: within 8 %
        size = float(law.workload.split()[2]) * (1e9 if " B " in law.workload else 1e6)
        line = language_model(size)
        assert line.critical_batch == pytest.approx(law.critical_batch, rel=0.08)
        assert line.low < law.critical_batch < line.high
    with pytest.raises(rb.SettingError, match="of this size"):
        language_model(7e10)
    noise = noise_of(published("rnnt"))
    low, high = np.quantile(noise.draws, [0.025, 0.975])
    assert (low, high) == pytest.approx((3090, 4462), rel=0.05)
    for wrong in ("language model", "nothing"):
        with pytest.raises(rb.SettingError, match="published law"):
            published(wrong)


def test_reference_convergence_points_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rcps_resnet.json"
    record = {"Benchmark": "resnet", "BS": 1632, "Hyperparams": {"opt": "lars"}}
    runs = [36, 34, 90, 35, 10]
    path.write_text(
        json.dumps({"resnet_ref_1632": {**record, "Epochs to converge": runs}})
    )
    (found,) = from_rcp_json(path)
    assert (found.workload, found.batch_size, found.unit) == ("resnet", 1632, "epochs")
    assert found.examples == 35.0  # without the best and the worst
    assert found.runs == 5
    for wrong in ([], [-1.0], [float("nan")]):
        bad = {"a": {**record, "Epochs to converge": wrong}}
        path.write_text(json.dumps(bad))
        with pytest.raises(rb.RunFolderError, match="no file of reference"):
            from_rcp_json(path)
    path.write_text(json.dumps({"a": {"BS": 3}}))
    with pytest.raises(rb.RunFolderError, match="no file of reference"):
        from_rcp_json(path)
    path.write_text("[")
    with pytest.raises(rb.RunFolderError, match="cannot read"):
        from_rcp_json(path)


def mllog(**changes: Any) -> str:
    def line(key: str, ms: int, value: Any = None, **metadata: Any) -> str:
        event = {"key": key, "time_ms": ms, "value": value, "metadata": metadata}
        return f":::MLLOG {json.dumps(event)}"

    status = changes.get("status", "success")
    return "\n".join(
        [
            "some other output",
            line("submission_benchmark", 1, "resnet"),
            line("global_batch_size", 2, 3264),
            line("run_start", 1000),
            ":::MLLOG {torn",
            line("eval_accuracy", 5000, 0.7, epoch_num=31),
            line("eval_accuracy", 7000, 0.76, epoch_num=35),
            "0: " + line("run_stop", 8500, None, status=status),
        ]
    )


def test_a_log_of_mlperf_is_read(tmp_path: Path) -> None:
    path = tmp_path / "result_0.txt"
    path.write_text(mllog())
    found = from_mllog(path)
    assert (found.workload, found.batch_size) == ("resnet", 3264)
    assert (found.examples, found.unit, found.seconds) == (35.0, "epochs", 7.5)
    path.write_text(mllog(status="aborted"))
    with pytest.raises(rb.RunFolderError, match="reached its target"):
        from_mllog(path)
    with pytest.raises(rb.RunFolderError, match="cannot read"):
        from_mllog(tmp_path / "nothing")


# The command


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return rightbatch("cluster", *arguments, cwd=cwd)


def test_the_command_from_a_run_folder(tmp_path: Path) -> None:
    made_up().save(tmp_path / "measurements.json")
    (tmp_path / "plan.json").write_text("{}")
    done = command(
        *(".", "--devices", "1..1024", "--bandwidth", "400Gb/s", "--latency", "20us"),
        *("--watts", "300", "--price", "2.5", "--steps", "100000"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("x " in line and "%" in line for line in lines) == 11
    assert "400 Gb/s" in done.stdout
    bare = dataclasses.replace(made_up(), noise=())
    (tmp_path / "bare").mkdir()
    bare.save(tmp_path / "bare/measurements.json")
    assert command("bare", cwd=tmp_path).returncode == 3
    prior = command("bare", "--prior", "lm:300M", "--devices", "1,8", cwd=tmp_path)
    assert prior.returncode == 0, prior.stderr
    assert "published: language model" in " ".join(prior.stdout.split())
    told = command("plan.json", "--devices", "1,6", "--json", cwd=tmp_path)
    document = json.loads(told.stdout)
    assert [r["devices"] for r in document["cluster"]["rows"]] == [1, 6]
    for wrong, text in (
        (("--devices", "0"), "no range of devices"),
        (("--bandwidth", "3"), "not a bandwidth"),
        (("--measure",), "no processes"),
        (("--watts", "-3"), "must be positive"),
        (("--gradient-bytes", "0GB"), "not an amount"),
        (("--latency", "20"), "lacks a unit"),
    ):
        failed = command(".", *wrong, cwd=tmp_path)
        assert failed.returncode == 2
        assert text in failed.stderr
    assert command("missing", cwd=tmp_path).returncode == 1


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_network_is_measured_under_torchrun(ranks: int, tmp_path: Path) -> None:
    made_up().save(tmp_path / "measurements.json")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [
            *(*run, f"--nproc-per-node={ranks}", "-m", "rightbatch", "cluster"),
            *(str(tmp_path), "--measure", "--devices", "1..8"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"measured over {ranks} processes" in done.stdout
    assert done.stdout.count("%") >= 4  # a row for 1, 2, 4 and 8 devices


def test_the_fleet_is_of_frozen_parts() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        fleet().most = 3  # pyrefly: ignore
