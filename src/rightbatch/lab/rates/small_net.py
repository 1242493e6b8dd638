"""A small net on the digits, and its runs under a batch, a rate or a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from rightbatch.job.job import Job
from rightbatch.lab.claim import Trial
from rightbatch.lab.training_runs import digits_job, trained
from rightbatch.noise.monitor import NoiseMonitor
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.schedule import Schedule
from rightbatch.training.controller import Controller
from rightbatch.training.run_state import RunState

HIDDEN = 32  # so that a step takes about a millisecond [assumed]


def small_job(
    seed: int, *, batch_size: int = 8, lr: float = 0.1, adam: bool = False
) -> Job:
    """Digits, an MLP 64-32-10, plain SGD or Adam, no target.

    Args:
        seed: Of weights and order.
        batch_size: The batch that ``lr`` belongs to.
        lr: Learning rate.
        adam: Adam instead of SGD.
    """
    kind = torch.optim.Adam if adam else torch.optim.SGD
    return digits_job(
        seed=seed,
        model=lambda: nn.Sequential(
            nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10)
        ),
        optimizer=lambda parameters: kind(parameters, lr=lr),
        batch_size=batch_size,
        target=None,
    )


def seeds_of(trial: Trial, reduced: int, full: int) -> range:
    """So many seeds of jobs; other ones for every seed of the trial."""
    first = 100 * trial.seed
    return range(first, first + trial.size(reduced, full))


def training_loss(job: Job) -> Callable[[nn.Module], float]:
    """Mean cross-entropy over all training examples, of a model."""
    pixels, classes = job.data
    return lambda model: F.cross_entropy(model(pixels), classes).item()


def loss_after(job: Job, *, batch_size: int, lr: float, examples: int) -> float:
    """Training loss after so many examples; that of chance where the run diverged."""
    steps = examples // batch_size
    look = training_loss(job)
    curve = trained(
        job, batch_size=batch_size, lr=lr, steps=steps, every=steps, look=look
    )
    return curve.values[-1] if curve.values else math.log(10)


def steps_to(job: Job, loss: float, *, batch_size: int, lr: float, most: int) -> float:
    """Updates to a training loss, looked at after every one; infinite beyond ``most``."""
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

    Args:
        schedule: Of the batch.
        rule: How the rate follows from the job's own batch and rate.
        rate: A schedule of the rate beside it.
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
