"""Step times: sizes, failures, what fits, and what a busy machine is."""

import time
from dataclasses import replace
from typing import Any

import pytest
import torch

import rightbatch as rb
from cases import regression_job
from rightbatch.fit.step_time import fit_time
from rightbatch.measure.time import USEFUL_STEPS, measure_times, step_sizes
from rightbatch.memory.peak import measure_memory
from rightbatch.training.run_state import RunState
from slow_steps import Clock, slow_job


def test_measured_times_and_memory_of_a_real_step() -> None:
    job = regression_job(examples=500, width=200)
    points, contention, notes = measure_times(RunState.start(job), budget_s=1.0)
    assert len(points) >= 6
    assert not notes
    assert contention.reason
    for p in points:
        assert 0 < p.fetch_time_s < 10 * p.step_time_s.value
        assert p.step_time_s.low <= p.step_time_s.value <= p.step_time_s.high
    run = RunState.start(job)
    run.step()
    small, large = (measure_memory(run, b).peak_memory_bytes for b in (100, 400))
    # 201 floats an example at the least, and no tenfold of it.
    assert 300 * 201 * 4 <= large - small <= 10 * 300 * 201 * 4


def test_short_steps_are_timed_at_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    job = slow_job(Clock(monkeypatch), fixed_s=1e-3, example_s=1e-4)
    points, _, _ = measure_times(RunState.start(job), budget_s=6.0)
    sizes = [p.micro_batch for p in points]
    assert sizes[: len(step_sizes(job))] == step_sizes(job)
    assert {len(p.rounds) for p in points} == {5}  # then all are known well enough
    for p in points:
        expected = 1e-3 + 1e-4 * p.micro_batch
        assert p.rounds == pytest.approx([expected] * 5)


@pytest.mark.parametrize("budget_s", [4.5, 9.0, 60.0])
def test_long_steps_fit_their_time(
    monkeypatch: pytest.MonkeyPatch, budget_s: float
) -> None:
    """A step of today's 16 examples takes a second."""
    clock = Clock(monkeypatch)
    run = RunState.start(slow_job(clock, fixed_s=0.04, example_s=0.06))
    points, _, _ = measure_times(run, budget_s=budget_s)
    sizes = [p.micro_batch for p in points]
    assert clock.now <= budget_s
    assert {1, 2, 4, 8, 16} <= set(sizes)
    assert (max(sizes) > 16) == (budget_s == 60.0)  # beyond today's where there is time
    for p in points:
        assert p.step_time_s.value == pytest.approx(0.04 + 0.06 * p.micro_batch)
    law = fit_time(points)
    assert law.seconds(16) == pytest.approx(1.0, rel=0.01)


def test_one_visit_is_a_point_whose_scatter_is_taken_from_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = RunState.start(slow_job(Clock(monkeypatch), example_s=1.0))
    points, _, _ = measure_times(run, budget_s=30.0, most_s=60.0)
    assert [p.micro_batch for p in points][-3:] == [4, 8, 16]
    for p in points:
        assert len(p.rounds) == 1
        assert p.step_time_s.relative == pytest.approx(0.1, abs=0.01)


def test_todays_batch_is_left_out_where_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    run = RunState.start(slow_job(clock, example_s=1.0, batch_size=64))
    points, _, _ = measure_times(run, budget_s=10.0, most_s=40.0)
    assert clock.now <= 40
    assert len(points) >= 3
    assert points[-1].micro_batch < 64


@pytest.mark.parametrize("example_s", [0.0, 2.0])
def test_a_budget_too_small_for_three_sizes_names_one_that_is_not(
    monkeypatch: pytest.MonkeyPatch, example_s: float
) -> None:
    """Known from the checks, before a step is made, or found with few examples."""
    clock = Clock(monkeypatch)
    run = RunState.start(slow_job(clock, example_s=2.0))
    with pytest.raises(rb.UnidentifiedError, match="budget is too small") as refused:
        measure_times(run, budget_s=2.0, most_s=7.0, example_s=example_s)
    assert "about 32 s" in refused.value.seen
    assert f"--budget {USEFUL_STEPS * 32}" in refused.value.fix
    assert clock.now == (8.0 if example_s == 0 else 0.0)


def test_steps_of_mostly_overhead_are_not_mistaken_for_long_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In proportion to two examples a step of 512 would take a minute, not 0.3 s."""
    clock = Clock(monkeypatch)
    job = slow_job(clock, fixed_s=0.25, example_s=1e-4, batch_size=512)
    points, _, _ = measure_times(RunState.start(job), budget_s=6.0, most_s=20.0)
    assert clock.now <= 6.0
    assert 512 in [p.micro_batch for p in points]


def test_a_step_that_compiles_is_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = Clock(monkeypatch), set()
    job = slow_job(clock, fixed_s=0.05, example_s=1e-3)
    plain = job.loss

    def loss(model: Any, batch: Any) -> Any:
        if len(batch[0]) not in seen:
            clock.now += 2.0
        seen.add(len(batch[0]))
        return plain(model, batch)

    run = RunState.start(replace(job, loss=loss))
    points, _, _ = measure_times(run, budget_s=30.0)
    for p in points:
        assert p.step_time_s.value == pytest.approx(0.05 + 1e-3 * p.micro_batch)


def test_a_size_that_fails_is_named() -> None:
    """Above today's batch it is an error; below, it is left out and noted."""

    def loss(model: Any, batch: Any) -> Any:
        if len(batch[0]) == 32:
            raise RuntimeError("not this one")
        return model(batch[0]).square().mean()

    with pytest.raises(rb.JobError, match="batch size 32") as failed:
        measure_times(RunState.start(regression_job(loss=loss)), budget_s=1.0)
    assert "not this one" in failed.value.seen
    job = regression_job(loss=loss, batch_size=64)
    points, _, notes = measure_times(RunState.start(job), budget_s=1.0)
    assert 32 not in [p.micro_batch for p in points]
    assert "batch 32 fails" in notes[0]


def alone(model: Any, batch: Any) -> Any:
    """The loss of a data set without targets."""
    return model(batch).square().mean()


class Broken:
    """A data set with one example that cannot be read, once so many were."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise ValueError("corrupt image")
        return torch.ones(5)


@pytest.mark.parametrize("after", [20, 40, 45, 60, 100, 300])
def test_data_that_fail_are_the_jobs_fault(after: int) -> None:
    """In every pass over a batch, timed or not."""
    run = RunState.start(regression_job(data=Broken(after), loss=alone))
    with pytest.raises(rb.JobError) as failed:
        measure_times(run, budget_s=5.0)
    assert failed.value.what == "reading the data raised ValueError"
    assert "corrupt image" in failed.value.seen


@pytest.mark.parametrize("length", [3, 7, 20])
def test_small_data_sets_still_have_sizes(length: int) -> None:
    sizes = step_sizes(regression_job(examples=length, batch_size=min(length, 4)))
    assert sizes == sorted(set(sizes))
    assert sizes[-1] <= length
    assert len(sizes) >= min(length, 6)


class Slow:
    """A data set whose examples take a while to come."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int) -> torch.Tensor:
        time.sleep(2e-4)
        return torch.full((5,), float(i))


def test_waiting_for_data_is_no_busy_machine() -> None:
    job = regression_job(data=Slow(), loss=alone, batch_size=8)
    points, contention, _ = measure_times(RunState.start(job), budget_s=1.0)
    if contention.stalled is None:
        pytest.skip("the kernel keeps no account of waiting here")
    assert contention.busy == (contention.stalled > 0.1)
    if not contention.busy:
        law = fit_time(points, contention)
        largest = points[-1]
        assert law.seconds(largest.micro_batch) > 0.5 * largest.step_time_s.value
        assert largest.step_time_s.value > 2e-4 * largest.micro_batch


def test_larger_sizes_are_timed_while_they_pay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step of constant cost: every doubling doubles the rate, to the data's end."""
    job = slow_job(Clock(monkeypatch), fixed_s=2e-3, example_s=0.0, examples=2048)
    points, _, _ = measure_times(RunState.start(job), budget_s=3.0)
    assert points[-1].micro_batch == 2048
    assert points[-1].step_time_s.value == pytest.approx(2e-3)
