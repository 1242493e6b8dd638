"""The command that plans for many devices: its table, its refusals, its network."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

import rightbatch as rb
from cases import made_up, rightbatch
from memory_jobs import ENVIRONMENT
from rightbatch.cli.cluster import parse_devices
from rightbatch.core.units import parse_bandwidth


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
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [
            *(*run, "--nproc-per-node=2", "-m", "rightbatch", "cluster"),
            *(str(tmp_path), "--measure", "--devices", "1..8"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "measured over 2 processes" in done.stdout
    assert done.stdout.count("%") >= 4  # a row for 1, 2, 4 and 8 devices
