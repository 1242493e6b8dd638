"""The command `measure`: facts in a file, and no decision."""

import json
from pathlib import Path

import torch

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


def test_measuring_begins_from_a_checkpoint(tmp_path: Path) -> None:
    model = rb.load_job("digits").make_model()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    done = rightbatch(
        *("measure", "digits", "--budget", "2", "--from", "weights.pt", "--out", "r"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "RB120 note: the run begins from weights.pt" in said
    assert max(map(len, done.stdout.splitlines())) <= 80
