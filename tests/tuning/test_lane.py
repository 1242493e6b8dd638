"""A lane: how it ends, and that it goes on as if it had never stopped."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import rightbatch as rb
from cases import regression_job, with_target
from rightbatch.measure.held_out_loss import held_out_loss
from rightbatch.schedules.scaling import scaling_for
from rightbatch.training.run_state import RunState, Snapshot
from rightbatch.tuning.lane import EVALUATE_SHARE, GROWTH, LaneRun, Setting, train_lane

LR = 0.01  # of the job, at a batch of 16


def setting(batch_size: int = 16, lr: float = LR, *, rule: str = "none") -> Setting:
    """A step of a second, so that a lane's seconds are its steps."""
    scaling = scaling_for("sgd", 16, batch_size, rule=rule)
    return Setting(
        batch_size=batch_size,
        micro_batch=batch_size,
        lr=lr,
        lr_factor=lr / (LR * scaling.lr),
        scaling=scaling,
        step_s=1.0,
    )


@dataclass
class Begun:
    """A fresh run and its start."""

    run: RunState
    start: Snapshot

    def train(self, lane: LaneRun, seconds: float, **more: Any) -> LaneRun:
        given: dict[str, Any] = {
            "held_out": None,
            "metric_s": 0.0,
            "met": self.run.job.met if more.get("held_out") is None else never,
        }
        train_lane(self.run, self.start, lane, seconds, **{**given, **more})
        return lane

    def weights(self) -> list[Tensor]:
        state = self.run.network.state_dict().values()
        return [value.clone() for value in state]


def never(metric: float) -> bool:
    return False


def begun(job: rb.Job | None = None) -> Begun:
    job = job or with_target(regression_job(examples=512), target=0.0)
    run = RunState.start(job)
    return Begun(run, run.snapshot())


def test_it_trains_as_long_as_it_may_and_stands_there() -> None:
    race = begun()
    lane = race.train(LaneRun(setting(), seed=0), seconds=20.4)
    assert lane.end == "time"
    assert lane.steps[-1] == 20
    assert lane.seconds == 20
    assert lane.open
    assert lane.state is not None
    assert race.run.steps == 20
    assert race.run.evaluated() == lane.metrics[-1]
    value = lane.lane()
    assert (value.batch_size, value.lr, value.end) == (16, LR, "time")
    assert value.steps == tuple(lane.steps)


def test_a_target_met_ends_it_at_once() -> None:
    race = begun(with_target(regression_job(examples=512), target=20.0))
    lane = race.train(LaneRun(setting(), seed=0), seconds=500)
    assert lane.end == "target"
    assert lane.metrics[-1] <= 20.0
    assert all(metric > 20.0 for metric in lane.metrics[:-1])
    assert not lane.open
    assert lane.state is None


def test_where_high_is_good_more_is_better() -> None:
    job = with_target(regression_job(examples=512))
    assert job.evaluate is not None
    low = job.evaluate
    turned = replace(job, evaluate=lambda model: -low(model), goal="max", target=-20.0)
    lane = begun(turned).train(LaneRun(setting(), seed=0), seconds=500)
    other = begun(replace(job, target=20.0)).train(LaneRun(setting(), 0), seconds=500)
    assert lane.end == other.end == "target"
    assert lane.steps == other.steps
    assert lane.metrics == [-metric for metric in other.metrics]


@pytest.mark.parametrize("lr", [1e3, 1e30])
def test_one_that_diverges_ends_there_and_is_not_gone_on_from(lr: float) -> None:
    lane = begun().train(LaneRun(setting(lr=lr), seed=0), seconds=200)
    assert lane.end == "diverged"
    assert lane.steps[-1] < 100
    assert not math.isfinite(lane.metrics[-1])
    assert all(math.isfinite(metric) for metric in lane.metrics[:-1])
    assert all(a < b for a, b in pairwise(lane.steps))
    assert not lane.open


def test_a_run_that_diverged_leaves_nothing_behind() -> None:
    """Neither in the weights nor in the optimizer of those that come after it."""
    momentum = regression_job(
        examples=512,
        optimizer=lambda params: torch.optim.SGD(params, lr=LR, momentum=0.9),
    )
    race = begun(with_target(momentum, target=0.0))
    before = race.train(LaneRun(setting(32), seed=0), seconds=15)
    race.train(LaneRun(setting(lr=1e30), seed=0), seconds=200)
    after = race.train(LaneRun(setting(32), seed=0), seconds=15)
    assert before.metrics == after.metrics


def test_late_stops_it_where_it_stands_and_it_can_go_on() -> None:
    race, steps = begun(), 0

    def late() -> bool:
        nonlocal steps
        steps += 1
        return steps == 7

    lane = race.train(LaneRun(setting(), seed=0), seconds=200, late=late)
    assert (lane.end, lane.steps[-1]) == ("time", 7)
    assert lane.open
    race.train(lane, seconds=10)
    assert lane.steps[-1] == 10


class Restless(nn.Module):
    """Dropout, whose random numbers, and BatchNorm, whose buffers have to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def adam(params: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=LR)


@pytest.mark.parametrize("between", [None, 16, 64])
@pytest.mark.parametrize("seed", [0, 1000])
def test_going_on_is_as_if_it_had_never_stopped(between: int | None, seed: int) -> None:
    """Bit for bit, whoever trained in between, on the first stream or another."""
    job = regression_job(examples=512, model=Restless, optimizer=adam)
    race = begun(with_target(job, target=0.0))
    scaled = replace(setting(32, 2 * LR), scaling=scaling_for("adam", 16, 32))
    scaled = replace(scaled, lr_factor=2 * LR / (LR * scaled.scaling.lr))
    whole = race.train(LaneRun(scaled, seed), seconds=40)
    weights, group = race.weights(), dict(race.run.optimizer.param_groups[0])
    parts = LaneRun(scaled, seed)
    for seconds in (6, 6, 17, 40):
        race.train(parts, seconds)
        if between is not None:
            race.train(LaneRun(setting(between), seed=77), seconds=5)
    assert parts.state is not None
    race.run.rewind(parts.state)
    for a, b in zip(weights, race.weights(), strict=True):
        assert torch.equal(a, b)
    again = race.run.optimizer.param_groups[0]
    for key in ("lr", "betas", "eps", "weight_decay"):
        assert again[key] == group[key]
    assert again["lr"] == pytest.approx(2 * LR)
    assert parts.metrics[-1] == whole.metrics[-1]
    both = dict(zip(whole.steps, whole.metrics, strict=True))
    common = [
        (both[step], metric)
        for step, metric in zip(parts.steps, parts.metrics, strict=True)
        if step in both
    ]
    assert len(common) >= 4
    assert all(a == b for a, b in common)


class Noting(Dataset[tuple[Tensor, Tensor]]):
    """Notes which examples were asked for."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.seen.append(index)
        return torch.full((5,), index / 512), torch.zeros(1)


def test_lanes_of_one_seed_see_one_stream() -> None:
    """Whatever their batch: two steps of 16 are the examples of one of 32."""
    data, seen = Noting(), []
    race = begun(regression_job(data=data, evaluate=lambda model: 1.0, target=0.0))
    for size, seconds, seed in ((16, 40, 0), (32, 20, 0), (16, 40, 0), (16, 40, 1000)):
        data.seen.clear()
        race.train(LaneRun(setting(size), seed), seconds)
        seen.append(list(data.seen))
    assert len(seen[0]) == 640
    assert seen[0] == seen[1] == seen[2]
    assert seen[3] != seen[0]


def test_the_rate_is_the_settings_whatever_the_rule() -> None:
    for rule in ("none", "linear", "sqrt"):
        race = begun()
        race.train(LaneRun(setting(64, 0.02, rule=rule), seed=0), seconds=1)
        assert race.run.optimizer.param_groups[0]["lr"] == pytest.approx(0.02)


@pytest.mark.parametrize("batch_size", [8, 16, 64])
def test_evaluations_are_spaced_by_growth(batch_size: int) -> None:
    """From four of today's batches on; the last step is evaluated too."""
    lane = begun().train(LaneRun(setting(batch_size), seed=0), seconds=150)
    assert lane.steps[0] == -(-4 * 16 // batch_size)
    assert lane.steps[-1] == 150
    for a, b in pairwise(lane.steps[:-1]):
        assert b == math.ceil(GROWTH * a)


def test_a_slow_evaluation_takes_its_share_at_most() -> None:
    lane = begun().train(LaneRun(setting(), seed=0), seconds=150, metric_s=4.0)
    gaps = [b - a for a, b in pairwise(lane.steps)]
    assert min(gaps[:-1]) >= 4.0 / EVALUATE_SHARE
    assert lane.steps[-1] == 150


def test_held_out_loss_stands_in_for_evaluate() -> None:
    """Then the job's target, in other units, ends nothing."""
    job = with_target(regression_job(examples=512), target=1e6)
    race, held = begun(job), torch.arange(20)
    lane = race.train(LaneRun(setting(), seed=0), seconds=30, held_out=held)
    assert lane.end == "time"
    assert lane.metrics[-1] == held_out_loss(race.run, held)


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "failed"),
        (rb.JobError("evaluate failed"), "failed"),
        (RuntimeError("something else"), None),
    ],
)
def test_what_fails_has_lost_and_a_bug_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, error: Exception, ends: str | None
) -> None:
    race = begun()
    step: Callable[[], Any] = race.run.step

    def failing() -> Any:
        if race.run.steps == 9:
            raise error
        return step()

    monkeypatch.setattr(race.run, "step", failing)
    lane = LaneRun(setting(), seed=0)
    if ends is None:
        with pytest.raises(RuntimeError, match="something else"):
            race.train(lane, seconds=30)
        return
    race.train(lane, seconds=30)
    assert lane.end == ends
    assert lane.steps[-1] < 10  # nothing is told of the step that failed
    assert all(math.isfinite(metric) for metric in lane.metrics)
    assert not lane.open


def test_a_loss_that_is_not_finite_is_a_lost_lane() -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[1]).sqrt() / (len(batch[0]) < 64)

    lane = begun(with_target(regression_job(examples=512, loss=loss), 0.0)).train(
        LaneRun(setting(64), seed=0), seconds=30
    )
    assert (lane.end, lane.steps) == ("diverged", [1])
