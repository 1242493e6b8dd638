"""The command that plans for many devices: its table, its refusals, its network."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest

import rightbatch as rb
from cases import Truth, made_up, raced, rightbatch
from launching import torchrun
from rightbatch.cli.cluster import cluster_lines, fleet_of, parse_devices
from rightbatch.cluster.devices import Fleet, plan_cluster
from rightbatch.cluster.network import ASSUMED
from rightbatch.core.units import BANDWIDTH
from rightbatch.measure.measurements import Measurements
from rightbatch.memory.points import MemoryPoint


def test_words_for_devices_and_links() -> None:
    assert parse_devices("1..8,12") == [1, 2, 4, 8, 12]
    assert parse_devices("3..20") == [3, 6, 12, 20]
    assert BANDWIDTH.parse("400Gb/s") == 50e9
    assert BANDWIDTH.parse("50GB/s") == 50e9
    for wrong in ("0..4", "8..2", "x", "", "1..99999999"):
        with pytest.raises(rb.SettingError):
            parse_devices(wrong)
    for wrong in ("400", "400Gbps", "-1Gb/s", "..Gb/s"):
        with pytest.raises(rb.SettingError):
            BANDWIDTH.parse(wrong)


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
        (("--measure",), "no process group"),
        (("--watts", "-3"), "not in the range"),
        (("--gradient-bytes", "0GB"), "not an amount"),
        (("--latency", "20"), "not a latency"),
    ):
        failed = command(".", *wrong, cwd=tmp_path)
        assert failed.returncode == 2
        assert text in failed.stderr
    assert command("missing", cwd=tmp_path).returncode == 1


def test_the_network_is_measured_under_torchrun(tmp_path: Path) -> None:
    made_up().save(tmp_path / "measurements.json")
    words = ("cluster", ".", "--measure", "--devices", "1..8")
    done = torchrun("-m", "rightbatch", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "measured over 2 processes" in done.stdout
    assert done.stdout.count("%") >= 4  # a row for 1, 2, 4 and 8 devices


def fleet(measurements: Measurements, **changes: Any) -> Fleet:
    options = dict.fromkeys(
        ("memory", "steps", "evaluations", "watts", "price", "gradient_bytes", "prior")
    )
    return fleet_of(measurements, ASSUMED, **{**options, **changes})


def job(**changes: Any) -> Measurements:
    """Made up measurements of sizes of which 1 and 16 failed."""
    found = made_up(sizes=(2, 4, 8, 32, 64, 128), critical=1e4)
    return dataclasses.replace(
        found, job=dataclasses.replace(found.job, examples=10**5, **changes)
    )


def said(measurements: Measurements, f: Fleet) -> str:
    lines = cluster_lines(plan_cluster(f, [1, 16, 1024]), f, measurements)
    assert max(map(len, lines)) <= 80
    return " ".join(" ".join(lines).split())


def test_only_sizes_that_ran_and_are_the_same_function_are_planned() -> None:
    assert fleet(job()).micro_batches == [2, 4, 8, 32, 64, 128]
    for kind in ("normalization", "loss"):
        touching = job(coupled=kind, coupled_batch=64)
        f = fleet(touching)
        assert f.micro_batches == [64]
        assert f"({kind}): every device keeps 64 at once" in said(touching, f)
    peaks = tuple(
        MemoryPoint(micro_batch=b, peak_memory_bytes=b * 2**20) for b in (2, 64, 128)
    )
    limited = dataclasses.replace(job(), memory=peaks)
    assert fleet(limited, memory=40 * 2**20).micro_batches == [2, 4, 8, 32]
    touching = dataclasses.replace(job(coupled="loss", coupled_batch=64), memory=peaks)
    with pytest.raises(rb.SettingError, match="no micro-batch that may be planned"):
        fleet(touching, memory=40 * 2**20)


def test_what_the_table_stands_on_is_said() -> None:
    text = said(job(), fleet(job(), steps=1000))
    assert "Data parallel only" in text
    assert "2 examples of a step or more" in text
    assert "batch above 64" in text
    assert "not told by the times" not in text
    prior = fleet(job(), prior="resnet", steps=1000)
    assert prior.largest_trained == 67840
    hardly = made_up(t0=1e-9, sizes=(64, 96, 128), jitter=0.03)
    assert "fixed part of a step is not told by the times" in said(
        hardly, fleet(hardly, steps=1000)
    )


def test_evaluations_are_those_of_train_or_as_told() -> None:
    slow = dataclasses.replace(job(), evaluate_s=2.0)
    assert fleet(slow).evaluation_s == 0.0  # how long a run is, is not known
    usual = fleet(slow, steps=1000)
    count = 1 + math.ceil(math.log(1000 / 4) / math.log(1.04))
    assert usual.evaluation_s == 2.0 * count
    assert usual.evaluation_share == 0.2
    assert "put off beyond 20%" in said(slow, usual)
    given = fleet(slow, steps=1000, evaluations=5)
    assert given.evaluation_s == 10.0
    row = plan_cluster(given, [1]).rows[0]
    assert row.evaluation == pytest.approx(10.0 / row.time.value)
    assert "(--evaluations)" in said(slow, given)
    assert fleet(slow, steps=1000, evaluations=0).evaluation_s == 0.0


def test_a_race_says_which_batches_were_trained() -> None:
    truth = Truth(critical=50, lr_max=0.1)
    raced_job = raced(made_up(), truth, [(64, 0.1), (16, 0.03), (256, 0.3)])
    assert fleet(raced_job).largest_trained == 256
    assert fleet(made_up()).largest_trained == 64


def test_a_critical_batch_without_end_is_said_to_be_so() -> None:
    silent = dataclasses.replace(job().noise[0].plain, grad_norm_sq=0.0)
    points = (dataclasses.replace(p, plain=silent) for p in job().noise)
    endless = dataclasses.replace(job(), noise=tuple(points))
    text = said(endless, fleet(endless, steps=1000))
    assert "B_crit at least" in text
    assert "lost to the critical batch" not in text
