"""The learning-rate schedule that a job brings, by examples seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rightbatch.core.errors import SettingError
from rightbatch.job.job import Job
from rightbatch.schedules.parse import parse_rate
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.run_checks import check_rate


def rate_of(job: Job) -> Rate | None:
    """The job's ``rate`` as a `Rate`; None: its learning rate stays.

    Args:
        job: A function of its own that makes a scheduler is run once, on an optimizer
            of a fresh model.

    Raises:
        SettingError: It cannot be read, is no function of steps alone, or comes to
            nothing before the job's run ends.
        JobError: The job's own code raised.

    Example:
        >>> from dataclasses import replace
        >>> import rightbatch as rb
        >>> digits = replace(rb.load_job("digits"), rate="cosine:2epochs", epochs=2)
        >>> round(rate_of(digits)(digits.length), 6)
        0.5
    """
    rate: Any = job.rate
    if rate is None:
        return None
    if isinstance(rate, str):
        rate = parse_rate(rate, job.length)
    elif not isinstance(rate, Rate):
        rate = _recorded(job, rate)
    if job.run_examples is not None:
        check_rate(rate, end=job.run_examples, step=job.batch_size)
    return rate


def _recorded(job: Job, make: Callable[..., Any]) -> Rate:
    """A scheduler that counts the steps of today's run, in examples."""
    if job.run_examples is None:
        raise SettingError(
            "a scheduler that counts steps needs the length of today's run",
            seen="rate is a function; neither examples nor epochs is given",
            why="its steps are those of today's batch, up to that length",
            fix="Job(rate=..., epochs=9)",
        )
    batch = min(job.batch_size, job.length)
    return Rate.from_scheduler(
        make,
        steps=math.ceil(job.run_examples / batch),
        batch_size=batch,
        optimizer=job.make_optimizer(job.make_model()),
    )
