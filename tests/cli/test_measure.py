"""The command `measure`: facts in a file, and no decision."""

import json
from pathlib import Path

import rightbatch as rb
from cases import rightbatch


def test_measurements_are_saved_and_can_be_decided_from(tmp_path: Path) -> None:
    done = rightbatch("measure", "digits", "--budget", "3", "--out", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "r").iterdir()} == {"measurements.json"}
    found = rb.Measurements.load(tmp_path / "r" / "measurements.json")
    assert found.command == "rightbatch measure digits --budget 3 --out r"
    assert found.job.spec == "digits"
    assert found.race is None
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == " next   rightbatch plan r/measurements.json"
    again = rightbatch("plan", "r", "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["plan"]["decided"] is False
    assert again.returncode == 3
