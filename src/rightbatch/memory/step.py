"""The step whose memory is asked for: every example in it is the longest one."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rightbatch.core.trees import leaves
from rightbatch.job.job import Job
from rightbatch.job.loss import PRECISIONS, check_differentiable
from rightbatch.training.gradient import Part, sum_gradients

LOOKED_AT = 256  # examples among which the longest is looked for [assumed]
LOOK_S = 10.0  # no longer than this [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimizer step of a job, at any micro-batch.

    Attributes:
        job: What is trained.
        batch: ``count ->`` a batch of so many examples, on the CPU.
        example: Which example the batches are made of, in words.
        accumulation: Micro-batches in the step.
    """

    job: Job
    batch: Callable[[int], Any]
    example: str
    accumulation: int = 1

    def run(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Iterable[Any],
        micro_batch: int,
    ) -> None:
        """Make it: the gradient over all ``batches``, then the optimizer's update."""
        optimizer.zero_grad(set_to_none=True)
        device = next(model.parameters()).device
        parts = (Part(batch, micro_batch) for batch in batches)
        passes = sum_gradients(
            model,
            self.job.loss,
            parts,
            device=device,
            dtype=PRECISIONS[self.job.precision],
        )
        check_differentiable(passes.reached)
        for parameter in (p for g in optimizer.param_groups for p in g["params"]):
            if parameter.grad is not None:
                parameter.grad.div_(sum(passes.counts))
        optimizer.step()


def step_of(job: Job, accumulation: int = 1) -> Step:
    """The job's step, each of its examples the longest one."""
    index, example = _longest(job)
    return Step(
        job=job,
        batch=lambda count: _batch_of(job, index, count),
        example=example,
        accumulation=accumulation,
    )


def _batch_of(job: Job, index: int, count: int) -> Any:
    """A batch of one example so many times over, on the CPU; it is read once."""
    cpu = torch.device("cpu")
    if isinstance(job.data, tuple):
        return job.batch([index] * count, cpu)
    (example,) = job.read([index])
    try:
        examples = [example, *(copy.deepcopy(example) for _ in range(count - 1))]
    except TypeError:  # what cannot be copied, such as a lock
        examples = job.read([index] * count)
    return job.collated(examples, cpu)


def _longest(job: Job) -> tuple[int, str]:
    """Number of the example that holds the most, of those looked at; and in words."""
    if isinstance(job.data, tuple):
        return 0, "all examples have one shape"
    sizes: dict[int, int] = {}
    until = time.monotonic() + LOOK_S
    for i in range(0, job.length, max(job.length // LOOKED_AT, 1)):
        if sizes and time.monotonic() > until:
            break
        sizes[i] = _numbers(job.read([i])[0])
    index = max(sizes, key=lambda i: sizes[i])
    if len(set(sizes.values())) == 1:
        return index, f"{len(sizes)} examples looked at, all of one size"
    return index, f"the longest of {len(sizes)} examples looked at (number {index})"


def _numbers(example: Any) -> int:
    """How many numbers or characters an example holds."""
    total = 0
    for leaf in leaves(example):
        if isinstance(leaf, (Tensor, np.ndarray)):
            total += math.prod(leaf.shape)
        else:
            total += len(leaf) if isinstance(leaf, (str, bytes)) else 1
    return total
