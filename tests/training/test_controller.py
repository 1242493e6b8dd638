"""Between two steps: batch and rate together, or neither."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

import rightbatch as rb
from cases import regression_job
from readings import reading
from rightbatch.measure.facts import job_facts
from rightbatch.training.run_state import RunState

DECAY = rb.schedules.Rate.cosine(100_000, floor=0.02)


def sgd(lr: float = 0.1, **more: Any) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=lr, **more)


def test_the_invariants_hold_in_what_the_optimizer_is_given() -> None:
    """lr / B along a whole run of the smith form, with batches rounded to pieces."""
    optimizer = sgd(0.5)
    schedule = rb.schedules.InsteadOfDecay(64, DECAY, 512)
    controller = rb.Controller(schedule, optimizer, 64, multiple=16)
    for examples in range(0, 120_000, 1000):
        controller(examples)
        lr = optimizer.param_groups[0]["lr"]
        assert controller.batch_size % 16 == 0
        truth = 0.5 * DECAY(examples) / 64
        assert lr / controller.batch_size == pytest.approx(truth, rel=1e-9)


class Noise:
    """A monitor that says what it is told."""

    def __init__(self) -> None:
        self.value, self.spread, self.examples = 100.0, 1.1, 1

    def read(self, window: int | None = None) -> Any:
        made = reading(self.value, self.spread)
        return types.SimpleNamespace(
            examples=1, noise_scale=made.noise_scale, grad_norm_sq=made.grad_norm_sq
        )


def live(**more: Any) -> tuple[rb.Controller, Noise]:
    noise: Any = Noise()
    schedule = rb.schedules.FollowNoise(64, fraction=1.0, most=4096)
    return rb.Controller(schedule, sgd(), 64, monitor=noise, **more), noise


def look(controller: rb.Controller, times: int = 1) -> list[Any]:
    return [c for _ in range(25 * times) if (c := controller(0)) is not None]


def test_a_live_batch_moves_only_when_the_interval_has_left_the_band() -> None:
    controller, noise = live()
    noise.value = 75.0  # within 1.25 x of 64
    assert look(controller, 4) == []
    noise.value, noise.spread = 300.0, 10.0  # as likely below as above
    assert look(controller, 4) == []
    noise.spread = 1.1
    (change,) = look(controller)
    assert (change.batch_from, change.batch_to) == (64, 128)  # at most twice
    assert "asks for 300" in change.reason
    assert [c.batch_to for c in look(controller, 3)] == [256]  # 300 is in the band
    noise.value = 250.0  # no flutter around the optimum
    assert look(controller, 3) == []
    noise.value = 20.0
    assert [c.batch_to for c in look(controller, 6)] == [128, 64, 32, 20]


def test_a_planned_noise_scale_stays_with_the_planned_rate() -> None:
    """Back at the planned batch the rate is the planned one, whatever the noise is."""
    controller, noise = live(noise_scale=200.0, rule="noise-aware")
    optimizer = controller.numbers.optimizer
    noise.value = 20.0
    look(controller, 1)
    assert controller.batch_size == 32
    halved = 0.1 * (1 + 200 / 64) / (1 + 200 / 32)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(halved)
    noise.value = 64.0
    look(controller, 1)
    assert controller.batch_size == 64
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    unplanned, noise = live(rule="auto")
    noise.value = 1000.0
    look(unplanned, 1)
    assert unplanned.numbers.noise_scale == 1000.0


def test_never_beyond_the_limit_and_said_once() -> None:
    controller, noise = live(largest=100, multiple=16)
    noise.value = 5000.0
    changes = look(controller, 5)
    assert [c.batch_to for c in changes] == [96, 96]
    assert "largest allowed" in changes[-1].reason
    assert "stays" in str(changes[-1])


def test_batch_and_rate_move_together_or_not_at_all() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    adam = torch.optim.Adam([weight], lr=0.1, betas=(0.5, 0.98))
    noise: Any = Noise()
    schedule = rb.schedules.FollowNoise(64, fraction=1.0, most=4096)
    controller = rb.Controller(schedule, adam, 64, monitor=noise, rule="adam-sde")
    noise.value = 1000.0
    changes = look(controller, 3)
    assert changes[0].batch_to == 128
    assert "left its domain" in changes[1].reason  # beta1 would be negative at 256
    assert controller.batch_size == 128
    controller.undo()


def test_undo_takes_batch_and_rate_back() -> None:
    controller, noise = live()
    optimizer = controller.numbers.optimizer
    noise.value = 300.0
    look(controller)
    assert controller.batch_size == 128
    controller.undo()
    assert controller.batch_size == 64
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_rule_that_does_not_reach_is_refused_before_the_run() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    adam = torch.optim.Adam([weight], lr=0.1)
    with pytest.raises(rb.SettingError, match="left its domain"):
        rb.Controller(rb.schedules.Ramp(64, 6400, 10**6), adam, 64, rule="adam-sde")
    with pytest.raises(rb.SettingError, match="needs a monitor"):
        rb.Controller(rb.schedules.FollowNoise(64, fraction=1.0), sgd(), 64)
    with pytest.raises(rb.SettingError, match="two learning-rate decays"):
        rb.Controller(rb.schedules.AlongRate(512, DECAY), sgd(), 64, rate=DECAY)


S = torch.optim.lr_scheduler


def test_a_ramp_goes_on_when_parameters_are_unfrozen() -> None:
    optimizer = sgd(0.1)
    controller = rb.Controller(rb.schedules.Ramp(8, 64, 600), optimizer, 8)
    late = torch.nn.Parameter(torch.zeros(2))
    for seen in range(0, 300, 20):
        controller(seen)
    at, rate = controller.batch_size, 0.003
    optimizer.add_param_group({"params": [late], "lr": rate})
    for seen in range(300, 700, 20):
        controller(seen)
    assert controller.batch_size == 64
    first, second = optimizer.param_groups
    assert first["lr"] == pytest.approx(0.1 * 64 / 8)
    assert second["lr"] == pytest.approx(rate * 64 / at)


def test_a_decay_goes_on_for_a_group_added_under_it() -> None:
    optimizer = sgd(0.1)
    rate = rb.schedules.Rate.linear(1000)
    controller = rb.Controller(rb.schedules.Constant(8), optimizer, 8, rate=rate)
    controller(500)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 1})
    controller(750)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.025, 0.5])


@pytest.mark.parametrize(
    "make",
    [
        lambda o: S.LambdaLR(o, lambda n: 0.9**n),
        lambda o: S.SequentialLR(o, [S.LinearLR(o), S.ExponentialLR(o, 0.9)], [3]),
        lambda o: S.OneCycleLR(o, 0.1, total_steps=9, cycle_momentum=False),
        lambda o: S.ReduceLROnPlateau(o),
    ],
)
def test_a_scheduler_that_counts_steps_is_refused_beside_a_ramp(make: Any) -> None:
    """With fewer steps its decay would not be finished."""
    optimizer, ramp = sgd(), rb.schedules.Ramp(8, 64, 600)
    scheduler = make(optimizer)
    name = type(scheduler).__name__
    with pytest.raises(rb.SettingError, match=f"{name} counts steps"):
        rb.Controller(ramp, optimizer, 8, scheduler=scheduler)


def test_a_wsd_schedule_by_examples_ends_with_the_ramp() -> None:
    optimizer = sgd(0.1)
    wsd = S.SequentialLR(
        optimizer,
        [
            S.LinearLR(optimizer, 0.1, 1.0, 10),
            S.ConstantLR(optimizer, 1.0),
            S.LinearLR(optimizer, 1.0, 0.02, 25),
        ],
        [10, 100],
    )
    by = rb.schedules.ByExamples(wsd, batch_size=8)
    ramp = rb.schedules.Ramp(8, 64, 600)
    controller = rb.Controller(ramp, optimizer, 8, rule="none", scheduler=by)
    seen = 0
    while seen < 1000:  # 125 steps of 8
        optimizer.step()
        seen += controller.batch_size
        by.step(controller.batch_size)
        controller(seen)
    assert controller.batch_size == 64
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.02)


class Relative(torch.optim.Optimizer):
    """Finds its own step size; may hold a learning rate of None."""

    def __init__(self, params: Any, **numbers: Any) -> None:
        super().__init__(params, {"power": 0.5, **numbers})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.grad is not None:
                parameter.sub_(parameter.grad.sign() * 1e-3)


@pytest.mark.parametrize("numbers", [{}, {"lr": None}])
def test_without_a_rate_only_the_batch_can_follow(numbers: dict[str, Any]) -> None:
    optimizer = Relative([torch.nn.Parameter(torch.zeros(3))], **numbers)
    ramp = rb.schedules.Ramp(8, 64, 600)
    decay = rb.schedules.Rate.linear(600, floor=0.1)
    settings: tuple[dict[str, Any], ...] = ({}, {"rule": "none", "rate": decay})
    for more in settings:
        with pytest.raises(rb.SettingError, match="no learning rate to change") as told:
            rb.Controller(ramp, optimizer, 8, **more)
        assert "Relative, param group 0" in told.value.seen
    controller = rb.Controller(ramp, optimizer, 8, rule="none")
    assert str(controller(600)) == "batch 8 -> 64: the ramp is over"
    assert rb.Controller(rb.schedules.Constant(8), optimizer, 8)(600) is None


def test_a_ramp_that_cannot_go_on_says_so() -> None:
    optimizer = sgd()
    controller = rb.Controller(rb.schedules.Ramp(8, 64, 600), optimizer, 8)
    controller(300)
    late = {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": None}
    optimizer.add_param_group(late)
    with pytest.warns(UserWarning, match="held at 37 after 600") as told:
        controller(600)
    assert "param group 1: lr: None" in str(told[0].message)
    assert controller(600) is None  # said once
    optimizer.param_groups[1]["lr"] = 0.1
    controller(600)
    assert controller.batch_size == 64


@pytest.mark.parametrize("numbers", [{}, {"lr": None}])
def test_train_needs_no_rate_and_what_changes_one_is_refused(
    numbers: dict[str, Any], tmp_path: Any
) -> None:
    job = regression_job(optimizer=lambda p: Relative(p, **numbers))
    run = rb.train(job, epochs=1, out=tmp_path / "r")
    assert run.last.lr is None
    assert rb.train(job, epochs=2, out=tmp_path / "r", resume=True).last.lr is None
    rb.train(job, epochs=1, batch_size=32, rule="none")
    changes: tuple[dict[str, Any], ...] = (
        {"batch_size": 32},
        {"rate": "linear:300:0.1"},
    )
    for change in changes:
        with pytest.raises(rb.SettingError, match="no learning rate to change"):
            rb.train(job, epochs=1, **change)
    with pytest.raises(rb.JobError, match="no learning rate above zero"):
        rb.check(job).raise_errors()
    with pytest.raises(rb.SettingError, match="no learning rate to change"):
        job_facts(RunState.start(job), "")
