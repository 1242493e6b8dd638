"""Digits on their way: weights at which gradients hold both signal and noise."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import nn

from rightbatch.job.job import Job
from rightbatch.lab.training_runs import digits_job, started


def partly_trained(seed: int, examples: int, steps: int, lr: float) -> Job:
    """Some digits and a small MLP, trained so far; a run of the job begins there.

    Args:
        seed: Of initial weights and order.
        examples: The first so many digits are its data set.
        steps: Updates by batches of 16 at rate 0.1.
        lr: Of the job's plain SGD from here on.
    """
    whole = digits_job()
    job = digits_job(
        seed=seed,
        data=tuple(t[:examples] for t in whole.data),
        model=lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )
    with started(job) as run:
        run.split(16)
        for _ in range(steps):
            run.step()
        weights = copy.deepcopy(run.network)
    return dataclasses.replace(
        job, model=weights, optimizer=lambda params: torch.optim.SGD(params, lr=lr)
    )
