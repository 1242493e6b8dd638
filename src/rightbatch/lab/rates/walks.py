"""Walks on a noisy quadratic under the product's schedules, and their theory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from rightbatch.core.estimate import Estimate
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.schedule import Constant, Schedule
from rightbatch.training.controller import Controller

Array = Float[np.ndarray, "..."]


def timetable(
    schedule: Schedule, *, lr: float, examples: int, rate: Rate | None = None
) -> Array:
    """Batch and rate of every step by the product's controller: shape (steps, 2)."""
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=lr)
    controller = Controller(schedule, sgd, schedule.start, rule="none", rate=rate)
    table, seen = [], 0
    while seen < examples:
        table.append((controller.batch_size, sgd.param_groups[0]["lr"]))
        seen += controller.batch_size
        controller(seen)
    return np.array(table, float)


@dataclass(frozen=True)
class Walk:
    """Second moments over the chains after every step, shape (steps,).

    Attributes:
        variance: Of the weight about the minimum.
        update_variance: Of the step about its mean.
        chains: Independent walks.
    """

    variance: Array
    update_variance: Array
    chains: int

    def mean(self, moment: Array, steps: slice) -> Estimate:
        """A moment over some steps; its interval is that of one step's chains."""
        value = float(moment[steps].mean())
        half = 1.96 * value * math.sqrt(2 / self.chains)
        low, high = value - half, value + half
        return Estimate(value=value, low=low, high=high, n=self.chains, method="chains")


def walked(table: Array, *, noise: float, chains: int, seed: int) -> Walk:
    """SGD on ``w**2 / 2`` whose examples' gradients have the variance ``noise``.

    The chains begin with the stationary variance of the first step.
    """
    random = np.random.default_rng(seed)
    w = random.normal(
        0.0, math.sqrt(rest_variance(table[0][0], table[0][1], noise)), chains
    )
    variance, update_variance = [], []
    for b, lr in table:
        expected = w - lr * w
        w = w - lr * (w + random.normal(0.0, math.sqrt(noise / b), chains))
        variance.append(np.square(w).mean())
        update_variance.append(np.square(w - expected).mean())
    return Walk(np.array(variance), np.array(update_variance), chains)


def variance_at_rest(
    b: int, lr: float, *, noise: float, chains: int, seed: int
) -> Estimate:
    """Var w under one batch and rate, over 200 steps after ten times of relaxation."""
    steps = math.ceil(10 / lr) + 200
    table = timetable(Constant(b), lr=lr, examples=b * steps)
    walk = walked(table, noise=noise, chains=chains, seed=seed)
    return walk.mean(walk.variance, slice(-200, None))


def rest_variance(b: float, lr: float, noise: float) -> float:
    """Var w = lr noise / (b (2 - lr)) at curvature 1, for 0 < lr < 2."""
    return lr * noise / (b * (2 - lr))
