"""`tune` and `train` on two gloo processes: one answer, that of the first rank."""

import json
from pathlib import Path

import pytest

import rightbatch as rb
from launching import TESTS, torchrun


def test_two_processes_tune_and_train_by_the_plan(tmp_path: Path) -> None:
    done = torchrun(
        "-m",
        "rightbatch",
        "tune",
        "digits",
        "--budget",
        "4",
        "--out",
        "run",
        cwd=tmp_path,
    )
    # Undecided is no failure to torchrun, which would start it again.
    assert done.returncode == 0, done.stderr[-2000:]
    plan = rb.Plan.load(tmp_path / "run" / "plan.json")
    assert done.stdout.count(" plan   ") == 1  # the first rank alone speaks
    assert plan.world_size == 2
    assert plan.batch_size == plan.micro_batch * plan.accumulation * 2
    measured = rb.Measurements.load(tmp_path / "run" / "measurements.json")
    assert measured.machine.world_size == 2
    assert {p.micro_batch % 2 for p in measured.times} == {0}
    trained = torchrun(
        *("-m", "rightbatch", "train", "digits", "--plan", "run"),
        *("--epochs", "2", "--out", "b"),
        cwd=tmp_path,
    )
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert "Target 0.12" in trained.stdout
    assert (tmp_path / "b" / "plan.json").exists()  # for its report
    assert (tmp_path / "b" / "trace.jsonl").exists()


def test_all_ranks_time_measure_and_race_together(tmp_path: Path) -> None:
    """Each rank finds the same, and the noise is that of one process: within 1e-4."""
    done = torchrun(str(TESTS / "race_ranks.py"), "found.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = json.loads((tmp_path / "found.json").read_text())
    assert first == second
    assert not any(size % 2 for size in first["sizes"])
    assert first["noise"] == pytest.approx(first["noise alone"], rel=1e-4)
    lanes = first["lanes"]
    assert len(lanes) >= 8
    assert len({(lane["batch_size"], lane["lr"]) for lane in lanes}) >= 5
    by_rate = {lane["lr"]: lane["metrics"][-1] for lane in lanes if lane["seed"] == 0}
    assert min(by_rate, key=by_rate.__getitem__) > 0.01  # today's rate is too small
