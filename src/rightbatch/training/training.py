"""A job in progress: model, optimizer and stream, moved on one exact step at a time."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import JobError
from rightbatch.core.user_code import user_code
from rightbatch.data.order.index_stream import IndexStream
from rightbatch.job.job import Job
from rightbatch.job.loss import check_differentiable


@dataclass
class Training:
    """One run of a job, which anything that trains (measure, race, train) moves on."""

    job: Job
    model: nn.Module
    optimizer: torch.optim.Optimizer
    stream: IndexStream
    steps: int = 0
    examples: int = 0

    @classmethod
    def start(
        cls, job: Job, seed: int | None = None, only: Tensor | None = None
    ) -> Training:
        """A fresh run at the job's initial weights.

        Args:
            job: What is trained.
            seed: Orders the examples; default the job's own.
            only: Indices of the examples to train on; default all.

        Raises:
            JobError: There are no examples, or model or optimizer cannot be made.
        """
        if job.length == 0:
            raise JobError("the data set is empty", seen="len(data) = 0")
        model = job.make_model()
        order = IndexStream(
            job.length if only is None else len(only),
            seed=job.seed if seed is None else seed,
            only=only,
        )
        return cls(job, model, job.make_optimizer(model), order)

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return next(self.model.parameters()).device

    def step(self, batch_size: int, micro_batch: int | None = None) -> Tensor:
        """Take the next ``batch_size`` examples and make one optimizer update.

        Args:
            batch_size: Examples of this step.
            micro_batch: Largest number of examples in memory at once; default all.

        Returns:
            The batch's mean loss, detached, on the device (shape ``()``).
        """
        indices = self.stream.take(batch_size)
        micro = min(micro_batch or batch_size, batch_size)
        batches = (self.job.batch(part, self.device) for part in indices.split(micro))
        sizes = [len(part) for part in indices.split(micro)]
        loss = accumulate(self.job, self.model, self.optimizer, batches, sizes)
        with user_code("optimizer.step()"):
            self.optimizer.step()
        self.steps += 1
        self.examples += batch_size
        return loss

    def fork(self, seed: int | None = None) -> Training:
        """A copy that goes its own way from here, on the same stream or another one.

        Weights, buffers and optimizer state are its own.
        """
        # By state, not by deepcopy: optimizers and models of users often cannot be
        # copied (hooks, attributes of their own, tensors kept from a forward pass).
        new = Training.start(self.job)
        new.model.load_state_dict(self.model.state_dict())
        for own, other in zip(new.model.buffers(), self.model.buffers(), strict=True):
            own.copy_(other)  # those that are not part of the state too
        new.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        new.stream = IndexStream(
            self.stream.length,
            seed=self.stream.seed if seed is None else seed,
            position=self.stream.position if seed is None else 0,
            only=self.stream.only,
        )
        new.steps, new.examples = self.steps, self.examples
        return new


def accumulate(
    job: Job,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Any,
    sizes: list[int],
) -> Tensor:
    """Leave in ``.grad`` the gradient of the mean loss over all micro-batches.

    A mean loss is weighted by its share of the examples. A ``(sum, count)`` loss is
    summed and divided once by the count of the whole batch, never a mean of means.

    Args:
        job: Gives the loss.
        model: The model to differentiate.
        optimizer: Its gradients are cleared first.
        batches: The micro-batches, made one at a time.
        sizes: Examples in each of them.

    Returns:
        The mean loss of the whole batch, detached (shape ``()``).

    Raises:
        JobError: The loss cannot be differentiated, or the job's code raised.
    """
    optimizer.zero_grad(set_to_none=True)
    total, counted = torch.zeros((), device=next(model.parameters()).device), 0.0
    ragged = False
    for batch, size in zip(batches, sizes, strict=True):
        loss, count = job.mean_loss(model, batch)
        part = loss * (size / sum(sizes)) if count is None else loss
        check_differentiable(part)
        with user_code("the backward pass"):
            part.backward()
        total = total + part.detach()
        ragged |= count is not None
        counted = counted + (0.0 if count is None else count)
    if ragged:
        total = total / counted
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.div_(counted)
    return total
