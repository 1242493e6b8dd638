"""What a torch scheduler makes of the learning rate, read off step by step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch

from rightbatch.core.errors import SettingError
from rightbatch.core.user_code import user_code
from rightbatch.schedules.by_examples import check_steps_alone

SAME = 1e-6  # relative difference of factors that are taken for one [assumed: rounding]
_RATES = ("lr", "initial_lr", "max_lr", "min_lr", "params")


def scheduler_factors(
    make: Callable[[torch.optim.Optimizer], Any],
    optimizer: torch.optim.Optimizer,
    steps: int,
) -> list[float]:
    """The factor that a scheduler puts on the learning rate at each of its steps.

    Args:
        make: ``optimizer ->`` a ``torch.optim.lr_scheduler``.
        optimizer: Only its learning rates are changed.
        steps: How many.

    Raises:
        SettingError: It is no function of steps alone, its param groups differ, or it
            ends before so many steps.
        JobError: ``make`` raised.
    """
    groups = optimizer.param_groups
    rates = [float(group["lr"]) for group in groups]
    others = [_but_rates(group) for group in groups]
    if not any(rates):
        raise SettingError(
            "the learning rate is zero before the scheduler begins",
            why="a factor on it would change nothing",
        )
    with user_code("making the scheduler"):
        scheduler = make(optimizer)
    check_steps_alone(
        scheduler, fix="rate=lambda optimizer: CosineAnnealingLR(optimizer, T_max=1000)"
    )
    factors = []
    with warnings.catch_warnings():
        # That the optimizer itself makes no step is on purpose.
        warnings.filterwarnings("ignore", "Detected call of", UserWarning)
        for step in range(steps):
            if step:
                _step(scheduler, step, steps)
            factors.append(_factor(groups, rates, step))
    _check_others(groups, others)
    return factors


def _but_rates(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in _RATES}


def _step(scheduler: Any, step: int, steps: int) -> None:
    try:
        scheduler.step()
    except Exception as error:
        raise SettingError(
            f"the scheduler cannot make step {step:,} of {steps:,}",
            seen=f"{type(error).__name__}: {error}".splitlines()[0][:120],
            why="it is asked for one step for every batch of today's run",
            fix=f"a scheduler of {steps:,} steps that needs no metric",
        ) from error


def _factor(groups: list[dict[str, Any]], rates: list[float], step: int) -> float:
    pairs = zip(groups, rates, strict=True)
    factors = [float(group["lr"]) / rate for group, rate in pairs if rate]
    if not all(math.isclose(f, factors[0], rel_tol=SAME) for f in factors):
        raise SettingError(
            "the scheduler has another factor for every param group",
            seen=f"at step {step:,}: " + ", ".join(f"{f:.3g}" for f in factors[:4]),
            why="one factor by examples is followed, on all of them",
            fix="one schedule for all param groups",
        )
    return factors[0]


def _check_others(groups: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """Refuse a scheduler that moves more than the learning rate."""
    for group, old in zip(groups, before, strict=True):
        changed = [key for key, value in old.items() if group[key] != value]
        if changed:
            raise SettingError(
                f"the scheduler changes {changed[0]} too",
                seen=f"{old[changed[0]]} before, {group[changed[0]]} after",
                why="only the learning rate is followed",
                fix="cycle_momentum=False, where it is a OneCycleLR or CyclicLR",
            )
