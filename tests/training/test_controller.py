"""Between two steps: batch and rate together, or neither."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

import rightbatch as rb
from readings import reading

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
