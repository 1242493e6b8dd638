"""The exact gradient of one batch, over all its micro-batches and all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import JobError
from rightbatch.core.torch_private import OutOfMemory, out_of_memory
from rightbatch.core.trees import to_device
from rightbatch.core.user_code import user_code
from rightbatch.job.loss import Loss, check_differentiable, scalar_loss
from rightbatch.training.batch_norm import corrected, running_norms
from rightbatch.training.ranks import Ranks
from rightbatch.training.recovery import PassState, release, reserve

HALVES = (torch.float16, torch.bfloat16)
READY, NO_MEMORY, FAILED = 0.0, 1.0, 2.0  # what a rank says before gradients travel


@dataclass(slots=True)
class Part:
    """Some examples of a batch, still where the loader left them.

    Attributes:
        batch: The examples, collated.
        count: How many.
        counts: False for a filler, which is only there to keep ranks in step.
    """

    batch: Any
    count: int
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Gradient:
    """What is known of a gradient that lies in ``.grad``.

    Attributes:
        loss: Mean over the whole batch, over all ranks; NaN where nothing was counted.
        count: What it is a mean over.
        flags: The largest of what each rank passed.
        pair: Whether the loss returned ``(sum, count)``.
    """

    loss: float
    count: float
    flags: tuple[float, ...]
    pair: bool = False


@dataclass(frozen=True, slots=True)
class PassOutOfMemory:
    """A rank ran out of memory in a pass; this one, if ``memory`` says how."""

    memory: OutOfMemory | None
    error: BaseException | None


@dataclass(slots=True)
class Passes:
    """What the passes over some micro-batches gave, beside what lies in ``.grad``.

    Attributes:
        sums: Each micro-batch's sum of losses (detached, shape ``()``).
        counts: And its count.
        reached: Whether any of them had a gradient.
        pair: Whether the loss returned ``(sum, count)``.
    """

    sums: list[Tensor] = field(default_factory=list)
    counts: list[Any] = field(default_factory=list)
    reached: bool = False
    pair: bool = False


def sum_gradients(
    model: nn.Module,
    loss: Loss,
    micro_batches: Iterable[Part],
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    divisor: float = 1.0,
    around: Callable[[Part], Any] = lambda micro: nullcontext(),
    scaler: Any = None,
    every: bool = False,
) -> Passes:
    """Add to ``.grad`` the gradient of the sum of all losses, over ``divisor``.

    This is the one place where the library makes a gradient: training, timing, the
    noise along a run, the race and the traced step of the memory law all come here.

    A micro-batch that reaches no trained weight (all of its targets masked, or none of
    the inputs that are trained on) adds to the loss and its count, and no gradient.

    Args:
        model: Called by the loss.
        loss: A mean over examples, which is multiplied by their number; or
            ``(sum, count)``.
        micro_batches: Read one at a time, so they may be made one at a time.
        device: Where each is moved.
        dtype: Of autocast, or None.
        divisor: Keeps the numbers small on the way.
        around: Makes the context that a forward pass runs in.
        scaler: A ``GradScaler``, or None.
        every: Whether each micro-batch must have a gradient.

    Raises:
        JobError: The loss cannot be differentiated, or the job's code raised.
    """
    passes = Passes()
    for micro in micro_batches:
        batch = to_device(micro.batch, device)
        with around(micro):
            value, count = scalar_loss(loss, model, batch, dtype)
        reached = value.requires_grad
        if every:
            check_differentiable(reached)
        passes.reached |= reached
        passes.pair |= count is not None
        value = value.float() if value.dtype in HALVES else value
        if count is None:
            value, count = value * micro.count, float(micro.count)
        if not micro.counts:
            value, count = value * 0.0, 0.0
        passes.sums.append(value.detach())
        passes.counts.append(count)
        if reached:
            value = value / divisor
            with user_code("the backward pass"):
                (value if scaler is None else scaler.scale(value)).backward()
    return passes


@dataclass
class BatchGradient:
    """Leaves in ``.grad`` the gradient of a batch: sum of losses over their count.

    Attributes:
        model: As the loop calls it.
        loss: A mean over examples, or ``(sum, count)``.
        optimizer: Whose parameters are differentiated for. What else of the model has a
            gradient is divided with the rest, but neither counted nor clipped.
        ranks: Who averages with whom.
        dtype: Of autocast, or None.
        scaler: A ``GradScaler``, or None.
        per_example: With a scaler: about what the loss counts for one example.
        reserving: Whether memory is kept free for the optimizer's state: until the
            first update, or until that itself leaves too little.
    """

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    ranks: Ranks
    dtype: torch.dtype | None
    scaler: Any
    per_example: float | None = None
    reserving: bool = True

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        self.norms = running_norms(self.model)
        self.before = PassState(self.ranks.network, self.device)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of all param groups as they are now: some may be added while training."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def gradients(self) -> list[Tensor]:
        """Those that this step has made."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def unheld(self) -> list[nn.Parameter]:
        """Those of the model that the optimizer does not hold, with a gradient."""
        held = {id(p) for p in self.parameters}
        own = self.model.parameters()
        return [p for p in own if p.grad is not None and id(p) not in held]

    def make(
        self,
        micro_batches: list[Part],
        examples: int | None,
        flags: Sequence[float],
    ) -> Gradient | PassOutOfMemory:
        """Leave in ``.grad`` the gradient of the whole batch.

        Ranks exchange gradients once, after every rank has said that its passes are
        done: who has run out of memory, or failed, keeps nobody waiting.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)  # also what the optimizer does not hold
        divisor, held = 1.0, []
        passes = Passes()
        error: BaseException | None = None
        try:
            divisor = self._divisor(micro_batches[0], examples)
            held = reserve(self.parameters) if self.reserving else []
            share = 1 / sum(m.count for m in micro_batches)
            with self.ranks.without_exchange():
                passes = sum_gradients(
                    self.model,
                    self.loss,
                    self.ranks.exchanging_last(micro_batches),
                    device=self.device,
                    dtype=self.dtype,
                    divisor=divisor,
                    around=lambda m: corrected(self.norms, m.count * share),
                    scaler=self.scaler,
                    every=self.ranks.sharded,  # whose ranks meet in each of them
                )
        except BaseException as raised:
            error = raised
        held.clear()
        agreed = self._agree(error, [passes.reached, *flags])
        if isinstance(agreed, PassOutOfMemory):
            return agreed
        self.ranks.average_gradients()
        passes.reached = bool(agreed[0])  # somewhere
        return self._divided(passes, divisor, agreed[1:], examples)

    def _divisor(self, first: Part, examples: int | None) -> float:
        """What losses are divided by on the way: near the count of the whole batch.

        Equal on all ranks. Float16 gradients of a sum over thousands would overflow, so
        with a scaler the first micro-batch is counted beforehand.
        """
        if self.scaler is not None and self.per_example is None:
            ratio, error = 0.0, None
            try:
                with torch.no_grad():
                    batch = to_device(first.batch, self.device)
                    _, count = scalar_loss(self.loss, self.model, batch, self.dtype)
                ratio = 1.0 if count is None else float(count) / first.count
            except Exception as failure:  # reported when the pass itself is made
                error = failure
            release(error)
            self.before.restore()
            highest = max(r for (r,) in self.ranks.gather([ratio]))
            self.per_example = 2.0 ** round(math.log2(highest or 1.0))
        whole = 1.0 if examples is None else examples / self.ranks.size
        return whole * (self.per_example or 1.0)

    def _agree(
        self, error: BaseException | None, flags: Sequence[float]
    ) -> tuple[float, ...] | PassOutOfMemory:
        """Before gradients are exchanged: has every rank made its passes?"""
        memory = None if error is None else self._memory(error)
        code = READY if error is None else NO_MEMORY if memory else FAILED
        answers = self.ranks.gather([code, *flags])
        if error is not None and memory is None:
            raise error
        failed = [rank for rank, numbers in enumerate(answers) if numbers[0] == FAILED]
        if failed:
            raise JobError(
                f"rank {failed[0]} failed in this step",
                seen="this rank was ready",
                why="a step is made by all ranks or by none",
                fix="see the error of the rank that failed",
            )
        if any(numbers[0] != READY for numbers in answers):
            release(error)
            return PassOutOfMemory(memory, error)
        columns = list(zip(*answers, strict=True))[1:]
        return tuple(max(column) for column in columns)

    def _divided(
        self,
        passes: Passes,
        divisor: float,
        flags: tuple[float, ...],
        examples: int | None,
    ) -> Gradient:
        """Divide by the count of the whole batch over all ranks; by none, if it is 0.

        Raises:
            JobError: No part of it has a gradient.
        """
        own = [_total(passes.sums), _total(passes.counts)]
        loss, count = map(math.fsum, zip(*self.ranks.gather(own), strict=True))
        if not count > 0:
            return Gradient(math.nan, count, flags, passes.pair)
        check_differentiable(passes.reached)
        factor = divisor * self.ranks.size / count
        if factor != 1.0:
            others = [p.grad for p in self.unheld() if p.grad is not None]
            for gradient in [*self.gradients(), *others]:
                gradient.mul_(factor)
        if self.scaler is not None:
            self.per_example = 2.0 ** round(math.log2(count / (examples or 1)))
        return Gradient(loss / count, count, flags, passes.pair)

    def _memory(self, error: BaseException) -> OutOfMemory | None:
        """What ran out of memory, where the step can be made again.

        Raises:
            JobError: It did, and the step cannot.
        """
        memory = out_of_memory(error)
        if memory is not None and self.ranks.sharded:
            raise JobError(
                "a rank of a sharded model ran out of memory",
                seen=memory.text[:120],
                why="the others wait inside its exchange of parameters, so the step "
                "cannot be made again in place",
                fix="resume from the last checkpoint with a smaller micro_batch",
            ) from error
        return memory


def _total(terms: list[Any]) -> float:
    """Their sum, on the host: one wait for the device at most."""
    if not all(isinstance(term, Tensor) for term in terms):
        return math.fsum(float(term) for term in terms)
    place = terms[0].device
    together = torch.stack([term.reshape(()).to(place) for term in terms])
    return math.fsum(together.tolist())
