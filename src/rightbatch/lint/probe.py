"""A job under the linter's eyes: made when first asked for, its passes on a budget."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from rightbatch.core.errors import JobError, SettingError, UnidentifiedError
from rightbatch.core.findings import Coupled, Finding
from rightbatch.core.guards import evaluating, preserved_rng, untouched
from rightbatch.core.torch_private import Dropout, as_written
from rightbatch.coupling.batch_statistics import (
    BatchStatistic,
    frozen,
    watched_statistics,
)
from rightbatch.coupling.leak import Leaks
from rightbatch.coupling.leakage import leaks
from rightbatch.coupling.probe import (
    LEAST_EXAMPLES,
    Coupling,
    coupling_by_type,
    find_coupling,
)
from rightbatch.job.job import Job
from rightbatch.job.loss import PRECISIONS, check_differentiable, means_in
from rightbatch.lint.setup import Setup
from rightbatch.measure.time import wait_for
from rightbatch.plan.laws import Laws, laws_of
from rightbatch.training.gradient import Part, Passes, sum_gradients

# Examples for comparisons that need no full batch: the fewer, the more clearly a loss
# that couples them shows it. [assumed]
FEW = 4
BACKWARD = 3  # forward and backward together cost so many forward passes [derived]
COUPLING_S = 3.0  # at most, to find whether examples touch [assumed]
LEAK_EXAMPLES = 8  # that are changed and watched for leaks [assumed]
LEAK_PASSES = 40  # over them, where nothing leaks: 6 log2(8) + 2 in a mode [derived]
# Growth that is none; and of a second doubling over the first: 1 for InfoNCE, 0.77 for
# a supervised contrastive loss, 0.5 for a smoothed ratio. [assumed; derived]
SLIGHT, STEADY = 1e-5, 0.7
Gradient = Float64[Tensor, " parameters"]
CHEAP = 0.15  # of the time for all passes: such a pass is always made [assumed]


class PassTooLongError(Exception):
    """A rule would need a pass through the model for which the time is not there."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"a pass of {seconds:.3g} s")


@dataclass
class Probe:
    """A job with its model and optimizer, made when first asked for.

    Attributes:
        job: What is checked.
        budget_s: Seconds for passes through the model: those that would take more are
            refused, unless they are cheap.
        spent_s: Seconds that passes have taken.
        forward_s: Least seconds for an example of a forward pass so far; 0: none yet.
        evaluate_s: Seconds that the job's ``evaluate`` took, once it was called.
        first_losses: What `first_loss` has found, by size.
        setup: How the job is run, as far as it was said.
    """

    job: Job
    budget_s: float = math.inf
    spent_s: float = 0.0
    forward_s: float = 0.0
    evaluate_s: float | None = None
    first_losses: dict[int, tuple[float, float | None]] = field(default_factory=dict)
    setup: Setup = field(default_factory=Setup)

    @functools.cached_property
    def model(self) -> nn.Module:
        """A fresh model."""
        return self.job.make_model()

    @functools.cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Its optimizer, which makes no step."""
        return self.job.make_optimizer(self.model)

    @functools.cached_property
    def coupling(self) -> Coupling:
        """Whether examples touch each other; by the layers where there is no time."""
        if not self.affords(LEAST_EXAMPLES):
            return coupling_by_type(self.model)
        left_s = max(self.budget_s - self.spent_s, CHEAP * self.budget_s)
        started = time.perf_counter()
        found = find_coupling(self.job, self.model, allowance_s=min(COUPLING_S, left_s))
        self.spent_s += time.perf_counter() - started
        return found

    @functools.cached_property
    def batch_statistics(self) -> list[BatchStatistic]:
        """What normalises over the batch in a training pass of a micro-batch.

        Without time for the pass there are none where no layer is a BatchNorm.
        """
        size = min(self.setup.split(self.job).micro_batch, self.job.length)
        model = self.model
        if not self.affords(size) and not coupling_by_type(model).kind:
            return []
        batch = self.batch(size)
        with (
            self.timed(size),
            preserved_rng(),
            untouched(model, []),
            as_written(),
            watched_statistics(model) as seen,
        ):
            self.job.mean_loss(model, batch)
        return seen

    @functools.cached_property
    def leaks(self) -> Searched:
        """What leaks among a few examples, beside BatchNorm that keeps statistics."""
        with frozen(self.model):
            return self.searched(leaks)

    def searched(self, search: Callable[..., Leaks]) -> Searched:
        """What a search for leaks finds among a few examples.

        Args:
            search: Called with the model, a batch and ``loss=``.

        Raises:
            PassTooLongError: There is no time.
        """
        size = min(LEAK_EXAMPLES, self.job.batch_size, self.job.length)
        if size < 2:
            return Leaks(items=(), examples=size, passes=0)
        if not self.affords(LEAK_PASSES * size):
            raise PassTooLongError(self.forward_s * LEAK_PASSES * size)
        started = time.perf_counter()
        try:
            return search(self.model, self.batch(size), loss=self.job.loss)
        except (SettingError, JobError) as error:
            return error
        finally:
            self.spent_s += time.perf_counter() - started

    @functools.cached_property
    def loss_couples(self) -> bool:
        """Whether it is the loss, and not the model, in which examples touch."""
        if self.coupled != "loss":
            return False
        inside = self.leaks.items if isinstance(self.leaks, Leaks) else ()
        return not any(x.across == "examples" and "eval" in x.modes for x in inside)

    @functools.cached_property
    def contrastive(self) -> bool:
        """Whether such a loss holds examples apart.

        It grows with the number of copies of one example, by about as much for every
        doubling (log n of InfoNCE) or by more; what is no power of n, as a norm is. A
        root, a ratio or a correlation of a batch does not.
        """
        if not self.loss_couples:
            return False
        try:
            two, four, eight = (self.loss(self.batch(1, n), n) for n in (2, 4, 8))
        except (SettingError, JobError):
            return False
        power = abs(four**2 - two * eight) <= SLIGHT * four**2
        grows = four - two > SLIGHT * abs(four)
        return grows and not power and eight - four > STEADY * (four - two)

    @functools.cached_property
    def laws(self) -> Laws | None:
        """Of what `tune` measured; None: it did not, or too little."""
        if self.setup.measurements is None:
            return None
        try:
            return laws_of(self.setup.measurements)
        except UnidentifiedError:
            return None

    @property
    def coupled(self) -> Coupled:
        """Where examples touch each other, as `tune` has found, or as is found now."""
        known = self.setup.measurements
        return self.coupling.kind if known is None else known.job.coupled

    @property
    def device(self) -> torch.device:
        """Of the model's parameters."""
        return next(self.model.parameters()).device

    def batch(self, count: int, repeats: int = 1) -> Any:
        """The first examples of the data, each ``repeats`` times."""
        indices = torch.arange(min(count, self.job.length)).repeat(repeats)
        return self.job.batch(indices, self.device)

    @functools.cached_property
    def few(self) -> int:
        """Examples for comparisons: `FEW`, or today's batch if the model needs that."""
        few = min(FEW, self.job.batch_size)
        try:
            self.first_loss(few)
        except JobError:
            return self.job.batch_size
        return few

    def affords(self, examples: float) -> bool:
        """Whether a forward pass over so many examples is cheap, or still fits."""
        seconds = self.forward_s * examples
        fits = self.spent_s + seconds <= self.budget_s
        return fits or seconds <= CHEAP * self.budget_s

    @contextmanager
    def timed(self, examples: float) -> Iterator[None]:
        """A pass that costs what a forward pass over so many examples does.

        Raises:
            PassTooLongError: The time for it is not there.
        """
        if not self.affords(examples):
            raise PassTooLongError(self.forward_s * examples)
        started = time.perf_counter()
        try:
            yield
            wait_for(self.device)
        finally:
            seconds = time.perf_counter() - started
            self.spent_s += seconds
            self.forward_s = min(self.forward_s or math.inf, seconds / examples)

    def differentiate(self, size: int) -> None:
        """Leave the gradient of a sum over so many examples in ``.grad``."""
        passes = self._passes([Part(self.batch(size), size)])
        check_differentiable(passes.reached)

    def gradient(
        self, parts: Sequence[Part], *, training: bool = True
    ) -> tuple[Gradient, bool]:
        """That of the mean over all parts, and whether torch drew numbers for it.

        Where it drew (augmentation inside, functional dropout, masks), gradients of the
        same examples in other parts differ by what was drawn.

        Args:
            parts: One pass for each.
            training: The mode; dropout layers stand still in both.
        """
        model = self.model
        with preserved_rng(), untouched(model, []):
            for module in model.modules():
                if not training or isinstance(module, Dropout):
                    module.training = False
            before = self._random_state()
            passes = self._passes(parts)
            drawn = not torch.equal(before, self._random_state())
            terms = float(sum(passes.counts)) or math.nan
            trained = [p for p in model.parameters() if p.requires_grad]
            made = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
            return torch.cat([g.flatten().double().cpu() for g in made]) / terms, drawn

    def _passes(self, parts: Sequence[Part]) -> Passes:
        """Leave the gradient of the sum over all parts in ``.grad``."""
        self.model.zero_grad(set_to_none=True)
        with self.timed(BACKWARD * sum(part.count for part in parts)):
            return sum_gradients(
                self.model,
                self.job.loss,
                parts,
                device=self.device,
                dtype=PRECISIONS[self.job.precision],
            )

    def _random_state(self) -> Tensor:
        """Of torch, on the host and on the model's device."""
        host = torch.get_rng_state()
        if self.device.type != "cuda":
            return host
        return torch.cat([host, torch.cuda.get_rng_state(self.device)])

    def first_loss(self, size: int) -> tuple[float, float | None]:
        """Value and count of the loss of the first examples, in training mode."""
        if size not in self.first_losses:
            batch = self.batch(size)
            with self.timed(size):
                value, count = self.job.mean_loss(self.model, batch)
                terms = None if count is None else float(count)
                self.first_losses[size] = float(value.detach()), terms
        return self.first_losses[size]

    def means_in_pair(self, size: int) -> dict[str, str] | None:
        """Which values of the pair that the loss returns are means; and why."""

        def pair(start: int, stop: int) -> tuple[float, float]:
            batch = self.job.batch(range(start, stop), self.device)
            with self.timed(stop - start):
                value, count = self.job.mean_loss(self.model, batch)
                return float(value), float(count or 0)

        with evaluating(self.model), preserved_rng():
            return means_in(pair, size)

    def loss(self, batch: Any, examples: int) -> float:
        """The mean loss in eval mode, where dropout and BatchNorm stand still."""
        with self.timed(examples), evaluating(self.model):
            value, count = self.job.mean_loss(self.model, batch)
            return float(value) / (float(count or 0) or 1.0)


Searched = Leaks | SettingError | JobError  # or why nothing could be searched
Rule = Callable[[Probe], Finding | None]
