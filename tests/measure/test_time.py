"""Step times: sizes, failures, and what a busy machine is."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import rightbatch as rb
from cases import regression_job
from rightbatch.fit.step_time import fit_time
from rightbatch.measure.time import measure_times, step_sizes
from rightbatch.memory.peak import measure_memory
from rightbatch.training.run_state import RunState


def test_measured_times_and_memory_of_a_real_step() -> None:
    job = regression_job(examples=500, width=200)
    points, contention, notes = measure_times(RunState.start(job), budget_s=1.0)
    sizes = [p.micro_batch for p in points]
    assert sizes[: len(step_sizes(job))] == step_sizes(job)
    assert len(sizes) >= 6
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
        return torch.full((3,), float(i))


def test_waiting_for_data_is_no_busy_machine() -> None:
    job = rb.Job(
        model=lambda: torch.nn.Linear(3, 1),
        loss=lambda model, batch: model(batch).square().mean(),
        data=Slow(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.01),
        batch_size=8,
    )
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
    now = 0.0
    clock = SimpleNamespace(
        perf_counter=lambda: now, monotonic=lambda: now, process_time=lambda: now
    )
    monkeypatch.setattr("rightbatch.measure.time.time", clock)

    def loss(model: Any, batch: Any) -> Any:
        nonlocal now
        now += 2e-3
        return model(batch[0][:1]).square().mean()

    job = regression_job(examples=2048, batch_size=16, loss=loss)
    points, _, _ = measure_times(RunState.start(job), budget_s=3.0)
    assert points[-1].micro_batch == 2048
    assert points[-1].step_time_s.value == pytest.approx(2e-3)
