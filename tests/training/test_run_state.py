"""A run in progress: exact steps, snapshots, and nothing left behind."""

import math
import random
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from cases import regression_job
from resumed_job import plain as plain_job
from rightbatch.training.run_state import RunState
from rightbatch.training.settings import Settings


def test_a_step_is_the_same_however_it_is_split() -> None:
    job = regression_job()
    one, two = RunState.start(job), RunState.start(job)
    one.split(16)
    two.split(16, micro_batch=3)
    for _ in range(5):
        assert one.step().loss == pytest.approx(two.step().loss, rel=1e-5)
    for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_run_goes_on_from_a_snapshot_as_if_nothing_had_happened() -> None:
    job = regression_job(optimizer=lambda p: torch.optim.Adam(p, lr=0.1))
    run = RunState.start(job)
    run.step()
    snapshot = run.snapshot()
    losses = [run.step().loss for _ in range(3)]
    after = [p.detach().clone() for p in run.model.parameters()]
    for _ in range(2):  # the snapshot stays as it is
        run.rewind(snapshot)
        assert run.steps == 1
        assert [run.step().loss for _ in range(3)] == losses
        for p, q in zip(run.model.parameters(), after, strict=True):
            assert torch.equal(p, q)
    run.rewind(snapshot, seed=7)
    assert [run.step().loss for _ in range(3)] != losses  # another stream
    assert run.stream.step == 3


def test_the_same_moment_with_other_weights() -> None:
    """Those the job makes of another seed; optimizer and stream as they were."""
    job = regression_job(
        model=lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 1))
    )
    run = RunState.start(job)
    start = run.snapshot()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    other = run.with_other_weights(start, 1000)
    assert torch.equal(torch.get_rng_state(), before)
    expected = RunState.start(replace(job, seed=1000)).snapshot()
    assert other.state["model"].keys() == start.state["model"].keys()
    for name, weight in other.state["model"].items():
        assert torch.equal(weight, expected.state["model"][name])
    weight = "1.weight"
    assert not torch.equal(other.state["model"][weight], start.state["model"][weight])
    assert other.state["optimizer"] == start.state["optimizer"]
    assert other.state["stream"] == start.state["stream"]
    again = run.with_other_weights(start, job.seed)
    for name, value in again.state["model"].items():
        assert torch.equal(value, start.state["model"][name])
    run.rewind(other, seed=1000)
    whole = RunState.start(replace(job, seed=1000))
    assert run.step().loss == whole.step().loss


def test_measuring_makes_the_model_three_times_at_most() -> None:
    made = []

    def model() -> nn.Module:
        made.append(1)
        return nn.Linear(5, 1)

    rb.tune(regression_job(model=model), budget_s=2.0, with_race=False)
    assert len(made) <= 3


class Probe(nn.Module):
    """Dropout, BatchNorm and a frozen part: much that measuring could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.2)
        self.last = nn.Linear(8, 1)
        self.first.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.norm(self.first(x))))


def test_measuring_leaves_no_trace() -> None:
    """Parameters, buffers, modes, gradients and every random state are as before."""
    module = Probe()
    module.norm.eval()
    job = regression_job(model=module)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    modes = [m.training for m in module.modules()]
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    legacy: Any = np.random.get_state()
    keys = legacy[1].copy()
    states = (random.getstate(), torch.get_rng_state())
    rb.tune(job, budget_s=2.0)
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert [m.training for m in module.modules()] == modes
    assert all(p.grad is None for p in module.parameters())
    assert random.getstate() == states[0]
    after: Any = np.random.get_state()
    assert (after[1] == keys).all()
    assert torch.equal(torch.get_rng_state(), states[1])


class Clipped(torch.optim.SGD):
    """An optimizer with an attribute of its own, which deepcopy would lose."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.01, momentum=0.9)
        self.limit = 1.0

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], self.limit)
        return super().step(closure)


class Keeping(nn.Module):
    """Keeps a tensor of its forward pass, which cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 1)
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.last(x)
        self.count += 1
        return self.kept


def test_snapshots_need_no_deepcopy() -> None:
    run = RunState.start(regression_job(model=Keeping, optimizer=Clipped))
    for _ in range(3):
        run.step()
    snapshot = run.snapshot()
    loss = run.step().loss
    run.rewind(snapshot)
    assert [int(b) for b in run.model.buffers()] == [3]
    assert run.step().loss == loss


def test_a_job_says_who_reads_its_data() -> None:
    """Also after a rewind to another stream."""
    alone = replace(plain_job, num_workers=0)
    runs = [RunState.start(alone), RunState.start(replace(alone, num_workers=1))]
    for run in runs:
        run.rewind(run.snapshot(), seed=3)
    one, two = ([run.step().loss for _ in range(3)] for run in runs)
    assert one == two
    assert [run.stream.num_workers for run in runs] == [0, 1]
    for run in runs:
        run.close()


def test_on_a_cpu_measuring_for_a_schedule_is_paid_in_cpu_time() -> None:
    """While this process rests, the clock of its monitor's budget stands still."""
    schedule = rb.schedules.FollowNoise(32, fraction=0.5)
    settings = Settings(schedule=schedule, end=math.inf)
    run = RunState.start(regression_job(), settings, alone=True)
    assert run.monitor is not None
    clock = run.monitor._budget.clock
    before = clock()
    time.sleep(0.2)
    assert clock() - before < 0.1
    run.close()
