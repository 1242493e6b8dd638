"""Training ends where it should, and its files are whole."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rightbatch as rb
from cases import made_up, regression_job, with_target
from rightbatch.schedules.scaling import apply_scaling, scaling_for
from rightbatch.training.checkpoint import load_checkpoint
from rightbatch.training.loop import train_rows
from rightbatch.training.run_folder import make_run_folder
from rightbatch.training.run_state import RunState
from rightbatch.training.settings import Settings
from rightbatch.training.trace import read_trace


def test_training_ends_at_the_target_with_a_trace(tmp_path: Path) -> None:
    job = with_target(regression_job(), target=1.5)
    run = rb.train(job, batch_size=32, out=tmp_path / "run")
    assert run.reached
    assert run.last.metric is not None
    assert run.last.metric <= 1.5
    assert run.last.examples == 32 * run.last.steps
    assert read_trace(tmp_path / "run" / "trace.jsonl") == run.rows
    assert run.checkpoint is not None
    state = load_checkpoint(run.checkpoint)
    assert state["steps"] == run.last.steps
    for name, value in run.model.state_dict().items():
        assert torch.equal(state["model"][name], value)


def test_a_plan_sets_batch_and_rate() -> None:
    found = made_up(t0=4e-3, t1=1e-3, critical=100)
    plan = rb.decide(found).plan
    regression = regression_job(
        examples=512,
        batch_size=64,
        name="made_up",
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
    )
    job = with_target(regression, 1.5)
    run = rb.train(job, plan)
    assert run.batch_size == plan.batch_size
    with pytest.raises(rb.SettingError, match="another job"):
        rb.train(replace(job, name="other"), plan)
    faster = replace(job, optimizer=lambda p: torch.optim.SGD(p, lr=0.02))
    with pytest.raises(rb.SettingError, match="changed since the plan"):
        rb.train(faster, plan)


def test_a_target_out_of_reach_ends_all_the_same() -> None:
    job = with_target(regression_job(), target=0.0)
    run = rb.train(job, batch_size=64, epochs=3)
    assert run.reached is False
    assert run.last.examples >= 3 * 256


def test_a_diverging_run_is_named() -> None:
    job = regression_job(optimizer=lambda p: torch.optim.SGD(p, lr=1e5))
    with pytest.raises(rb.JobError, match="became"):
        rb.train(job, epochs=50)


def test_a_stop_between_steps_is_a_clean_end() -> None:
    settings = Settings(schedule=rb.schedules.Constant(16), end=math.inf)
    run = RunState.start(regression_job(), settings)
    asked = iter([False] * 6 + [True] * 10)
    rows = list(train_rows(run, stop=lambda: next(asked)))
    assert rows[-1].steps == run.steps == 7


def test_nothing_is_written_over(tmp_path: Path) -> None:
    job = with_target(regression_job(), target=1.5)
    rb.train(job, out=tmp_path / "run")
    before = (tmp_path / "run" / "trace.jsonl").read_bytes()
    with pytest.raises(rb.RunFolderError, match="already holds a run"):
        rb.train(job, out=tmp_path / "run")
    assert (tmp_path / "run" / "trace.jsonl").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(rb.RunFolderError, match="cannot write"):
        make_run_folder(tmp_path / "file" / "x", "job")


def test_a_trace_cut_short_is_read_up_to_there(tmp_path: Path) -> None:
    job = with_target(regression_job(), target=1.5)
    run = rb.train(job, out=tmp_path / "run")
    path = tmp_path / "run" / "trace.jsonl"
    path.write_text(path.read_text()[:-20])
    assert read_trace(path) == run.rows[:-1]
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(rb.RunFolderError, match="line 1"):
        read_trace(path)


def test_scaled_training_follows_the_scaled_rate() -> None:
    """A step after scaling is the step of an optimizer made with the scaled rate."""
    job = regression_job()
    scaled = RunState.start(job)
    apply_scaling(scaled.optimizer, scaling_for("sgd", 16, 32))
    made = RunState.start(
        replace(job, optimizer=lambda params: torch.optim.SGD(params, lr=0.02))
    )
    for run in (scaled, made):
        run.split(32)
        run.step()
    for p, q in zip(scaled.model.parameters(), made.model.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_rows_are_strict_json(tmp_path: Path) -> None:
    run = rb.train(regression_job(), epochs=1, out=tmp_path / "r")
    for line in (tmp_path / "r" / "trace.jsonl").read_text().splitlines():
        assert json.loads(line, parse_constant=pytest.fail)["metric"] is None
    assert math.isfinite(run.last.loss)
    assert run.reached is None
