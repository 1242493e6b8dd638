"""Examples that see each other stay together: no other number of them is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from cases import made_up, regression_job
from rightbatch.training.plan import Plan
from rightbatch.training.requested import settings_of
from rightbatch.training.settings import Settings
from stepping import stepping


def model() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 1))


class Seen(nn.Module):
    """Notes how many examples it sees at once."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.sizes = model(), []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.inner(x)


def job_and_plan(make: Any = model) -> tuple[rb.Job, Plan]:
    """A job at batch 8, and a plan of larger batches."""
    job = regression_job(examples=1024, batch_size=8, model=make)
    found = made_up(t0=0.1, t1=1e-4, critical=1000, today=8)
    facts = replace(
        found.job, name="job", lr=0.01, coupled="normalization", coupled_batch=8
    )
    found = replace(found, job=facts)
    plan = rb.decide(found).plan
    assert plan.micro_batch == 8 < plan.batch_size
    return job, plan


def test_a_plan_is_followed_without_a_word() -> None:
    job, plan = job_and_plan(Seen)
    run = rb.train(job, plan, examples=2 * plan.batch_size)
    assert isinstance(run.model, Seen)
    assert set(run.model.sizes) == {8}
    assert len(run.model.sizes) == 2 * plan.accumulation
    assert not [event for event in run.events if "each piece" in event]


def grouped_plan() -> tuple[rb.Job, Plan]:
    """A job at batch 8, and a plan of micro-batches of several times as many."""
    job, plan = job_and_plan()
    return job, replace(plan, micro_batch=plan.batch_size // 2, accumulation=2)


def test_groups_inside_micro_batches_are_the_same_run(tmp_path: Path) -> None:
    """Weights and statistics after three steps; float32 leaves 1e-5 of them."""
    job, plan = grouped_plan()
    assert plan.micro_batch > 8 == plan.coupled_batch
    small = replace(plan, micro_batch=8, accumulation=plan.batch_size // 8)
    examples = 3 * plan.batch_size
    runs: list[Any] = [
        rb.train(job, plan, examples=examples, out=tmp_path / "groups"),
        rb.train(job, small, examples=examples, out=tmp_path / "pieces"),
    ]
    assert [type(run.model[0]) for run in runs] == [nn.BatchNorm1d] * 2
    states = [run.model.state_dict() for run in runs]
    assert list(states[0]) == list(states[1])
    for grouped, pieces in zip(*(state.values() for state in states), strict=True):
        assert torch.allclose(grouped, pieces, rtol=1e-5, atol=1e-6)
    more: Any = rb.train(
        job, examples=2 * examples, out=tmp_path / "groups", resume=True
    )
    whole: Any = rb.train(job, plan, examples=2 * examples)
    assert all(map(torch.equal, more.model.parameters(), whole.model.parameters()))
    assert type(more.model[0]) is nn.BatchNorm1d


def test_groups_are_made_in_one_pass() -> None:
    """Two passes a step, of the planned micro-batch; by a schedule in pieces of 8."""
    job, plan = grouped_plan()
    job = replace(job, model=Seen)
    run: Any = rb.train(job, plan, examples=2 * plan.batch_size)
    assert run.model.sizes == [plan.micro_batch] * 4
    run = rb.train(job, plan, schedule=rb.schedules.Constant(24), examples=48)
    assert run.model.sizes == [8] * 6


def test_groups_can_be_left_out() -> None:
    """By micro_batch of the coupled batch, and where ranks share a batch."""
    job, plan = grouped_plan()
    job = replace(job, model=Seen)
    run: Any = rb.train(job, plan, examples=2 * plan.batch_size, micro_batch=8)
    assert set(run.model.sizes) == {8}
    with pytest.raises(rb.SettingError, match="8 of them as planned, micro_batch=4"):
        rb.train(job, plan, examples=plan.batch_size, micro_batch=4)


def test_on_ranks_a_plan_of_one_process_keeps_its_coupled_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job, plan = grouped_plan()
    monkeypatch.setattr("rightbatch.training.requested.joined", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    nothing: Any = dict.fromkeys(("batch_size", "schedule", "begun"))
    wanted = settings_of(job, plan, options={}, end=1024, **nothing)
    assert (wanted.micro_batch, wanted.group, wanted.multiple) == (8, None, 16)


def test_another_micro_batch_is_refused(tmp_path: Path) -> None:
    job, plan = job_and_plan()
    with pytest.raises(rb.SettingError, match="see each other"):
        rb.train(job, plan, examples=plan.batch_size, micro_batch=4)
    rb.train(job, plan, examples=plan.batch_size, out=tmp_path)
    with pytest.raises(rb.SettingError, match="see each other"):
        rb.train(job, examples=99 * 8, out=tmp_path, resume=True, micro_batch=16)


def test_a_batch_that_is_no_multiple_is_refused() -> None:
    job, plan = job_and_plan()
    with pytest.raises(rb.SettingError, match="no multiple of the 8") as caught:
        rb.train(job, plan, schedule=rb.schedules.Constant(20), examples=40)
    assert "batches of 8 examples, or multiples" in str(caught.value)


def test_memory_that_runs_out_makes_no_smaller_pieces() -> None:
    """Once the optimizer's reserve is let go; then it is an error."""
    calls = []

    def loss(network: nn.Module, batch: Any) -> Tensor:
        calls.append(len(batch[0]))
        raise torch.OutOfMemoryError("CUDA out of memory")

    network, told = model(), []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    step = rb.Accumulator(
        network, loss, optimizer, 8, coupled=True, tell=lambda text: told.append(text)
    )
    with pytest.raises(rb.JobError, match="the 8 examples that are kept together"):
        step((torch.randn(16, 5), torch.randn(16, 1)))
    assert calls == [8, 8]
    assert len(told) == 1


def test_coupled_needs_a_number() -> None:
    network = model()
    with pytest.raises(rb.SettingError, match="micro_batch"):
        stepping(network, lambda m, b: m(b).mean(), coupled=True)


def test_runs_of_before_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    Settings(schedule=rb.schedules.Constant(16), end=100, micro_batch=8).save(path)
    path.write_text(path.read_text().replace(' "coupled": false,\n', ""))
    assert "coupled" not in path.read_text()
    assert Settings.load(path).micro_batch == 8
