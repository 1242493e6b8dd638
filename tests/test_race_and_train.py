"""The race is fair; training ends where it should; its files are whole."""

import itertools
import json
import math
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rightbatch as rb
from cases import made_up, raced, regression_job, with_target
from rightbatch.data.order.held_out import hold_out
from rightbatch.measure.held_out import held_out_loss
from rightbatch.measure.trajectory import measure_trajectory
from rightbatch.plan.choice import choose
from rightbatch.schedules.scaling import apply_scaling, scaling_for
from rightbatch.training.checkpoint import load_checkpoint
from rightbatch.training.loop import train_rows
from rightbatch.training.run_folder import make_run_folder
from rightbatch.training.run_state import RunState
from rightbatch.training.settings import Settings
from rightbatch.training.trace import read_trace
from rightbatch.tuning.candidates import race_entries
from rightbatch.tuning.race import MARKS, Curve, Entry, race, speedup

curves = st.lists(st.floats(0.01, 10), min_size=MARKS, max_size=MARKS).map(
    lambda values: Curve(
        start=5.0,
        times=[float(i + 1) for i in range(MARKS)],
        values=list(itertools.accumulate([5.0, *values], min))[1:],
    )
)


@given(curves, curves)
def test_speed_is_symmetric_and_bounded(a: Curve, b: Curve) -> None:
    forth, back = speedup(a, b), speedup(b, a)
    assert 1 / MARKS <= forth <= MARKS
    assert forth * back == pytest.approx(1.0)


def test_twice_as_fast_is_two() -> None:
    times = [float(i + 1) for i in range(MARKS)]
    slow = Curve(start=10.0, times=times, values=[10 - t / 2 for t in times])
    fast = Curve(start=10.0, times=times, values=[10 - t for t in times])
    assert speedup(fast, slow) == pytest.approx(2.0)


def entry(role: str, size: int, lr: float = 0.01) -> Entry:
    scaling = scaling_for("sgd", 16, size, rule="none")
    return Entry(
        role=role,
        batch_size=size,
        micro_batch=size,
        lr=lr,
        scaling=scaling,
        step_s=1e-4,
    )


def test_a_race_of_equals_is_a_draw_and_a_handicap_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two candidates alike: the interval holds 1; a hundredth of the rate is slower.

    The clock counts readings, so the race is the same on any machine.
    """
    job = with_target(regression_job(examples=512), target=0.0)
    run = RunState.start(job)
    for _ in range(5):
        run.step()
    warm = run.snapshot()
    slow = replace(entry("slow", 16), scaling=replace(entry("x", 16).scaling, lr=0.01))
    counter = itertools.count()
    still = types.SimpleNamespace(perf_counter=lambda: 0.0)  # no wall clock
    monkeypatch.setattr("rightbatch.tuning.race.time", still)
    result = race(
        run,
        warm,
        [entry("plan", 16), entry("today", 16), slow],
        budget_s=0.9,
        held_out=None,
        clock=lambda: next(counter) / 1024,  # exact in binary
    )
    assert result is not None
    plan, today, handicap = result.candidates
    assert plan.speedup.value == pytest.approx(1.0, abs=0.01)
    assert plan.metrics == today.metrics
    assert handicap.speedup.high < 0.5
    assert handicap.steps == today.steps > 20


def test_a_race_without_time_is_not_run() -> None:
    job = with_target(regression_job())
    entries = [replace(entry("today", 16), step_s=10.0)]
    run = RunState.start(job)
    assert race(run, run.snapshot(), entries, budget_s=1, held_out=None) is None


def test_held_out_loss_is_the_mean_loss_on_examples_nobody_trains_on() -> None:
    job = regression_job(examples=200)
    kept, held = hold_out(200, seed=0)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(200))
    assert len(held) == 10
    run = RunState.start(job)
    snapshot = run.snapshot()

    def seen() -> list[int]:
        return [int(i) for _ in range(50) for m in run.next_batch() for i in m.indices]

    run.rewind(snapshot, kept=kept)
    first = seen()
    assert set(first) == set(kept.tolist())
    assert sorted(first[:190]) == sorted(kept.tolist())  # each once in a pass
    run.rewind(snapshot, seed=7)
    other = seen()
    assert set(other) == set(first)
    assert other != first
    batch = job.batch(held, torch.device("cpu"))
    expected = float(job.mean_loss(run.model, batch)[0].detach())
    assert held_out_loss(run, held) == pytest.approx(expected, rel=1e-5)


def test_a_candidate_that_fails_has_lost_and_the_race_goes_on() -> None:
    job = with_target(regression_job(examples=512), target=0.0)
    run = RunState.start(job)
    run.step()
    warm = run.snapshot()
    wild = replace(entry("wild", 16), scaling=replace(entry("x", 16).scaling, lr=1e30))
    candidates = [entry("plan", 16), entry("today", 16), wild]
    counter = itertools.count()
    result = race(
        run,
        warm,
        candidates,
        budget_s=0.9,
        held_out=None,
        clock=lambda: next(counter) / 1024,  # exact in binary
    )
    assert result is not None
    assert result.candidates[2].speedup.value < 0.2


def test_the_candidates_are_plan_today_and_a_neighbour() -> None:
    choice = choose(made_up(t0=4e-3, t1=1e-3, critical=100))
    roles = {e.role: e.batch_size for e in race_entries(choice)}
    assert roles["today"] == 64
    assert roles["plan"] == choice.chosen.batch_size
    assert roles["neighbour"] in (roles["plan"] // 2, roles["plan"] * 2)
    stay = choose(raced(made_up(), {16: (0.5, 0.4, 0.6), 64: (1, 1, 1)}))
    assert stay.chosen.batch_size == 64
    assert {e.role for e in race_entries(stay)} == {"today", "smaller", "larger"}


def test_the_warm_start_lies_early_in_the_run() -> None:
    job = with_target(regression_job(), target=1.5)
    found = measure_trajectory(RunState.start(job), budget_s=20.0)
    assert found.reached
    assert found.warm is not None
    assert found.warm.steps < found.metrics[-1].step


# Training


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


def test_two_runs_of_one_seed_are_alike() -> None:
    job = with_target(regression_job(), target=1.5)
    one, two = (rb.train(job, batch_size=8) for _ in range(2))
    assert [r.loss for r in one.rows] == [r.loss for r in two.rows]


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


@pytest.mark.parametrize(
    "given",
    [
        {"batch_size": 4, "epochs": 1, "examples": 3},
        {"batch_size": 0, "epochs": 1},
        {"batch_size": 4, "epochs": -1},
        {"batch_size": 4, "examples": 0},
        {"batch_size": 1000, "epochs": 1},
        {},  # no target: no end
    ],
)
def test_bad_settings_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(rb.SettingError):
        rb.train(regression_job(), **given)


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


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code was run')",))


def test_no_code_runs_from_a_checkpoint(tmp_path: Path) -> None:
    torch.save(
        {"format": "rightbatch/checkpoint/2", "model": Malice()}, tmp_path / "x.pt"
    )
    with pytest.raises(rb.RunFolderError, match="cannot read"):
        load_checkpoint(tmp_path / "x.pt")
    torch.save({"format": "other"}, tmp_path / "y.pt")
    with pytest.raises(rb.RunFolderError, match="is not a"):
        load_checkpoint(tmp_path / "y.pt")
    (tmp_path / "z.pt").write_bytes(b"short")
    with pytest.raises(rb.RunFolderError):
        load_checkpoint(tmp_path / "z.pt")


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
