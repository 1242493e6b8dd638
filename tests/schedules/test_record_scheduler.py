"""Torch schedulers are read off exactly, or refused with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import rightbatch as rb
from rightbatch.schedules.record_scheduler import scheduler_factors


def warm_cosine(step: int) -> float:
    return (step + 1) / 5 if step < 5 else 0.5 * (1 + math.cos(math.pi * step / 40))


def chained(optimizer: torch.optim.Optimizer) -> Any:
    warm = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
    then = lr_scheduler.CosineAnnealingLR(optimizer, 36, eta_min=1e-3)
    return lr_scheduler.SequentialLR(optimizer, [warm, then], [4])


MAKERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, warm_cosine),
    "sequential": chained,
    "one cycle": lambda o: lr_scheduler.OneCycleLR(
        o, max_lr=0.3, total_steps=40, cycle_momentum=False
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_factors_are_those_that_torch_trains_by(name: str) -> None:
    def sgd() -> torch.optim.SGD:
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.2)

    optimizer, seen = sgd(), []
    scheduler = MAKERS[name](optimizer)
    for _ in range(40):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    factors = scheduler_factors(MAKERS[name], sgd(), 40)
    assert [0.2 * f for f in factors] == pytest.approx(seen, rel=1e-12)
    rate = rb.schedules.Rate.from_scheduler(
        MAKERS[name], steps=40, batch_size=16, optimizer=sgd()
    )
    assert [0.2 * rate(16 * k) for k in range(40)] == pytest.approx(seen, rel=1e-12)


def two_groups(optimizer: torch.optim.Optimizer) -> Any:
    return lr_scheduler.LambdaLR(optimizer, [lambda k: 1 / (1 + k), lambda k: 1.0])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lr_scheduler.ReduceLROnPlateau, "its steps alone"),
        (lambda o: None, r"no step\(\)"),
        (two_groups, "another factor for every param group"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=90), "momentum"),
        (
            lambda o: lr_scheduler.OneCycleLR(
                o, 0.3, total_steps=9, cycle_momentum=False
            ),
            "cannot make step 10 of 20",
        ),
    ],
)
def test_what_is_no_function_of_steps_is_refused(make: Any, reason: str) -> None:
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    groups = [{"params": [a]}, {"params": [b]}]
    optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9)
    with pytest.raises(rb.SettingError, match=reason):
        scheduler_factors(make, optimizer, 20)


def test_an_error_inside_the_function_names_its_line() -> None:
    def make(optimizer: torch.optim.Optimizer) -> Any:
        raise KeyError("no such setting")

    with pytest.raises(rb.JobError, match="KeyError") as caught:
        rb.schedules.Rate.from_scheduler(make, steps=3, batch_size=4)
    assert "no such setting" in str(caught.value)
