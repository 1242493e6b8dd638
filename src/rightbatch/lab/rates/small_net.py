"""A small net on the digits, and its runs under a batch, a rate or a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from rightbatch.core.estimate import Estimate
from rightbatch.job.job import Job
from rightbatch.lab.claim import Trial
from rightbatch.lab.samples import mean_of
from rightbatch.lab.training_runs import digits_job, trained
from rightbatch.noise.monitor import NoiseMonitor
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.schedule import Schedule
from rightbatch.training.controller import Controller
from rightbatch.training.run_state import RunState

EPOCH = 1437  # training examples of the digits


def small_job(
    seed: int, *, batch_size: int = 8, lr: float = 0.1, adam: bool = False
) -> Job:
    """Digits, an MLP 64-32-10, plain SGD or Adam, no target."""
    kind = torch.optim.Adam if adam else torch.optim.SGD
    return digits_job(
        seed=seed,
        model=lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        optimizer=lambda parameters: kind(parameters, lr=lr),
        batch_size=batch_size,
        target=None,
    )


def seeds_of(trial: Trial, reduced: int, full: int) -> range:
    """So many seeds of jobs; other ones for every seed of the trial."""
    return range(100 * trial.seed, 100 * trial.seed + trial.size(reduced, full))


def log_ratio(values: Sequence[float], over: Sequence[float]) -> Estimate:
    """Mean log of values over others, pair by pair (of one seed each)."""
    return mean_of([math.log(a / b) for a, b in zip(values, over, strict=False)])


def training_loss(job: Job) -> Callable[[nn.Module], float]:
    """Mean cross-entropy of a model over all training examples."""
    pixels, classes = job.data
    return lambda model: F.cross_entropy(model(pixels), classes).item()


def loss_after(job: Job, *, batch_size: int, lr: float, examples: int) -> float:
    """Training loss after so many examples; that of chance where the run diverged."""
    n, look = examples // batch_size, training_loss(job)
    curve = trained(job, batch_size=batch_size, lr=lr, steps=n, every=n, look=look)
    return curve.values[-1] if curve.values else math.log(10)


def steps_to(job: Job, loss: float, *, batch_size: int, lr: float, most: int) -> float:
    """Updates to a training loss; infinite where more than ``most``."""
    curve = trained(
        job,
        batch_size=batch_size,
        lr=lr,
        steps=most,
        look=training_loss(job),
        stop=lambda value: value <= loss,
    )
    reached = bool(curve.values) and curve.values[-1] <= loss
    return float(curve.steps[-1]) if reached else math.inf


def following(
    schedule: Schedule, *, rule: str = "none", rate: Rate | None = None
) -> Callable[[RunState], None]:
    """Makes a run of `trained` follow a schedule: for its ``before``.

    A live schedule is given the noise of every step, so that no clock decides.
    """

    def before(run: RunState) -> None:
        if run.controller is not None:
            return
        if schedule.live:
            run.monitor = NoiseMonitor(
                run.model, run.optimizer, math.inf, stream=run.stream
            )
        run.controller = Controller(
            schedule,
            run.optimizer,
            run.job.batch_size,
            stream=run.stream,
            monitor=run.monitor,
            rule=rule,
            rate=rate,
        )

    return before
