"""Real jobs trained by the product's own engine, for the claims that need one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import JobError, NotFiniteError
from rightbatch.core.guards import preserved_rng, untouched
from rightbatch.job.built_in import digits
from rightbatch.job.job import Job
from rightbatch.training.run_state import RunState


def digits_job(**changes: Any) -> Job:
    """The built-in job on scikit-learn's digits, with other fields where named.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    return dataclasses.replace(digits.make_job(), **changes)


@contextmanager
def started(job: Job) -> Iterator[RunState]:
    """A fresh run of a job, alone on this process; the caller's RNG stays as it was."""
    with preserved_rng():
        run = RunState.start(job, alone=True)
        try:
            yield run
        finally:
            run.close()


@dataclass(frozen=True)
class Curve:
    """A run as it was seen.

    Attributes:
        steps: Updates at each look.
        examples: Examples at each look.
        values: What was looked at, such as the held-out loss.
        losses: The batch's own loss, at every step.
        diverged: Whether a loss stopped being finite.
    """

    steps: tuple[int, ...]
    examples: tuple[int, ...]
    values: tuple[float, ...]
    losses: tuple[float, ...]
    diverged: bool = False


def trained(
    job: Job,
    *,
    batch_size: int,
    lr: float,
    steps: int,
    every: int = 1,
    look: Callable[[nn.Module], float] | None = None,
    stop: Callable[[float], bool] = lambda value: False,
    before: Callable[[RunState], None] = lambda run: None,
) -> Curve:
    """Train for so many steps and look at the model every so often.

    Args:
        job: Its seed fixes initial weights and order.
        batch_size: Examples of a step.
        lr: Of all param groups.
        steps: Most updates.
        every: Steps between two looks.
        look: Made of the model, in eval mode, without gradient; default the job's
            ``evaluate``.
        stop: Whether what was seen ends the run.
        before: Called with the run before every step: to change batch or rate.
    """
    seen: list[tuple[int, int, float]] = []
    losses: list[float] = []
    evaluate, diverged = look or job.evaluate, False
    with started(job) as run:
        run.split(batch_size)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        while run.steps < steps:
            before(run)
            try:
                losses.append(run.step().loss)
            except (JobError, NotFiniteError):
                diverged = True
                break
            if evaluate is not None and run.steps % every == 0:
                value = looked(evaluate, run.network)
                seen.append((run.steps, run.examples, value))
                if stop(value):
                    break
    return Curve(
        steps=tuple(at for at, _, _ in seen),
        examples=tuple(examples for _, examples, _ in seen),
        values=tuple(value for _, _, value in seen),
        losses=tuple(losses),
        diverged=diverged,
    )


def looked(evaluate: Callable[[nn.Module], float], model: nn.Module) -> float:
    """A number of the model in eval mode; mode and RNG stay as they were."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad(), preserved_rng():
            return float(evaluate(model))
    finally:
        model.train(was)


def batch_gradient(run: RunState, indices: Tensor) -> Tensor:
    """The gradient of the mean loss over some examples, flat (parameters,), float64.

    Made by the run's accumulator, as a training step makes it; nothing is updated.
    """
    with untouched(run.network, run.parameters):
        batch = run.job.batch(indices, run.device)
        run.accumulator.differentiate(batch, len(indices), count=len(indices))
        return torch.cat(
            [
                torch.zeros(p.numel(), dtype=torch.float64)
                if p.grad is None
                else p.grad.detach().double().flatten()
                for p in run.parameters
            ]
        )
