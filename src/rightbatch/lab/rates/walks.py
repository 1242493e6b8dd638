"""Walks on a noisy quadratic under the product's schedules, and their theory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from rightbatch.core.estimate import Estimate
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.schedule import Schedule
from rightbatch.training.controller import Controller

Array = Float[np.ndarray, "..."]


@dataclass(frozen=True)
class Timetable:
    """Batch and learning rate of every step, shape (steps,) each."""

    batches: Array
    lrs: Array


def timetable(
    schedule: Schedule, *, lr: float, examples: int, rate: Rate | None = None
) -> Timetable:
    """What a controller makes of a schedule over so many examples.

    Args:
        schedule: Of the batch; ``lr`` belongs to its first.
        lr: Before any decay.
        examples: Where it ends.
        rate: A decay beside the schedule.
    """
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=lr)
    controller = Controller(schedule, optimizer, schedule.start, rule="none", rate=rate)
    batches, lrs, seen = [], [], 0
    while seen < examples:
        batches.append(float(controller.batch_size))
        lrs.append(float(optimizer.param_groups[0]["lr"]))
        seen += controller.batch_size
        controller(seen)
    return Timetable(np.array(batches), np.array(lrs))


@dataclass(frozen=True)
class Walk:
    """Second moments over the chains at every step, shape (steps,).

    Attributes:
        variance: Of the weight after the step, about the minimum.
        update_variance: Of the step about its mean.
        chains: Independent walks.
    """

    variance: Array
    update_variance: Array
    chains: int

    def late(self, moment: Array, steps: slice) -> Estimate:
        """A moment's mean over some steps, with the 95 % interval of its chains.

        As if all those steps were one: chains at near steps are alike.
        """
        value = float(moment[steps].mean())
        half = 1.96 * value * math.sqrt(2 / self.chains)
        return Estimate(
            value=value,
            low=value - half,
            high=value + half,
            n=self.chains,
            method="chains",
        )


def walked(
    table: Timetable, *, noise: float, chains: int, seed: int, curvature: float = 1.0
) -> Walk:
    """SGD on ``curvature * w**2 / 2`` whose examples' gradients have this variance.

    The chains begin with the stationary variance of the first step.
    """
    random = np.random.default_rng(seed)
    first = stationary_variance(table.lrs[0], table.batches[0], noise, curvature)
    w = random.normal(0.0, math.sqrt(first), chains)
    variance, update_variance = [], []
    for b, lr in zip(table.batches, table.lrs, strict=True):
        before = w
        gradient = curvature * w + random.normal(0.0, math.sqrt(noise / b), chains)
        w = w - lr * gradient
        variance.append(np.square(w).mean())
        update_variance.append(np.square(w - before + lr * curvature * before).mean())
    return Walk(np.array(variance), np.array(update_variance), chains)


def stationary_variance(
    lr: float, b: float, noise: float, curvature: float = 1.0
) -> float:
    """Var w = lr noise / (b k (2 - lr k)) for 0 < lr k < 2."""
    return lr * noise / (b * curvature * (2 - lr * curvature))
