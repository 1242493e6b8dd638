"""What follows the batch, moved and moved back."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rightbatch as rb


def sgd(lr: float = 0.1, **more: Any) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=lr, **more)


@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=12))
def test_numbers_depend_on_the_batch_not_on_the_way_there(sizes: list[int]) -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    moved = torch.optim.AdamW([weight], lr=1e-3, betas=(0.9, 0.98))
    numbers = rb.schedules.Hyperparameters(moved, 64)
    for size in sizes:
        numbers.move(size)
    direct = torch.optim.AdamW([weight], lr=1e-3, betas=(0.9, 0.98))
    rb.scale_hyperparameters(direct, batch_from=64, batch_to=sizes[-1])
    for key in ("lr", "betas", "eps", "weight_decay"):
        assert moved.param_groups[0][key] == pytest.approx(direct.param_groups[0][key])
    numbers.move(64)
    assert moved.param_groups[0]["lr"] == pytest.approx(1e-3, rel=1e-12)


def test_a_move_is_made_whole_or_not_at_all_and_can_be_undone() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([{"params": [weight], "lr": 0.1}], betas=(0.9, 0.95))
    weight.grad = torch.ones(3)
    adam.step()
    before = {k: v for k, v in adam.param_groups[0].items() if k != "params"}
    mean = adam.state[weight]["exp_avg_sq"].clone()
    numbers = rb.schedules.Hyperparameters(adam, 64, rule="adam-sde")
    with pytest.raises(rb.SettingError, match="beta1 would be negative"):
        numbers.move(64 * 11)
    assert {k: v for k, v in adam.param_groups[0].items() if k != "params"} == before
    numbers.move(128)
    assert adam.param_groups[0]["lr"] != before["lr"]
    numbers.undo()
    numbers.undo()  # nothing more to take back
    after = {k: v for k, v in adam.param_groups[0].items() if k != "params"}
    assert after == before
    torch.testing.assert_close(adam.state[weight]["exp_avg_sq"], mean)


def test_a_schedulers_factor_is_kept_and_its_base_follows() -> None:
    optimizer = sgd(0.1)
    lambda_lr = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    numbers = rb.schedules.Hyperparameters(optimizer, 64, scheduler=lambda_lr)
    optimizer.step()
    lambda_lr.step()
    numbers.move(128)  # linear: twice
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5 * 2)
    optimizer.step()
    lambda_lr.step()  # computes the rate anew from its base
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.25 * 2)
    numbers.move(64)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.25)


def test_a_scheduler_that_counts_steps_is_noticed() -> None:
    optimizer = sgd()
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    numbers = rb.schedules.Hyperparameters(optimizer, 64)
    with pytest.warns(UserWarning, match="counts steps"):
        numbers.move(128)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers.move(256)  # said once
        quiet = sgd()
        rb.schedules.Hyperparameters(quiet, 64).move(128)
