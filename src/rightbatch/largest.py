"""The largest batch that fits: predicted, tried in a safe place, certified."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from rightbatch.blame import blaming
from rightbatch.errors import JobError, SettingError
from rightbatch.fit.envelope import (
    Envelope,
    Segment,
    check_room,
    fit_envelope,
    fit_points,
)
from rightbatch.isolation import preserved_rng
from rightbatch.job import Job, check_batch_size
from rightbatch.measure.budget import Budget, budget_for
from rightbatch.measure.record import MemoryPoint
from rightbatch.measure.traced_step import CannotTrace, probes_of
from rightbatch.measure.trial import Trial, try_step
from rightbatch.watch import Watcher

PROBES = ((2, 4, 8), (16, 32, 64))  # the second where a step needs more examples
REAL_PROBES = ((8, 16), (32, 64))
EXACT = 0.001  # a law this near to a real step is left as it is [assumed]
TRIALS = 4
LOOKED_AT = 256  # examples among which the longest is looked for [assumed]
FIRST_SHARE = 0.42  # of the limit: malloc may hold twice what is asked for [measured]
BELOW = 0.985  # of what should just fit is tried [assumed]
NEAR = 0.93  # of what did not fit is tried next [assumed]
ENOUGH = 1.015  # growth for which no more trial is made [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What stands behind a largest batch.

    Attributes:
        confidence: ``"verified"``: a real step of this batch came to its end within the
            limit; ``"predicted"``: none was run.
        method: How the law came about.
        trials: The real steps that were made, in order.
        predicted_bytes: Peak of the largest batch by the law.
        taken_bytes: What the process grew by in a real step of it; 0: not run.
        why: Why it was not verified.
    """

    confidence: str
    method: str
    trials: tuple[Trial, ...]
    predicted_bytes: int
    taken_bytes: int
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLaw:
    """Peak memory against micro-batch, and the largest one within a budget.

    Attributes:
        largest: Examples in one piece of a step; no more than the data set has.
        budget: What a step may take, term by term.
        envelope: The law.
        certificate: What stands behind it.
        example: Which examples it was traced with.
    """

    largest: int
    budget: Budget
    envelope: Envelope
    certificate: Certificate
    example: str

    def peak(self, batch: int) -> int:
        """Predicted most bytes of tensors alive in a step of so many examples."""
        check_batch_size(batch)
        return round(self.envelope.peak(batch))

    @property
    def binding(self) -> Segment:
        """The operation during which the most is alive at the largest batch."""
        return self.envelope.binding(self.largest)

    def __str__(self) -> str:
        return (
            f"largest batch {self.largest:,} ({self.certificate.confidence}), "
            f"bound by {self.binding}"
        )


def largest_batch(
    job: Job,
    memory: float | None = None,
    *,
    accumulation: int = 1,
    margin: float = 0.0,
    verify: bool = True,
    device: str | None = None,
    ranks: int = 1,
    sharded: bool = False,
    watcher: Watcher | None = None,
) -> MemoryLaw:
    """Find the largest micro-batch whose whole step fits in memory.

    The step is traced without running it, at three small batches; the law of its peak
    is inverted; then a few real steps are made around the answer, on the CPU in a
    child process under that limit, so that nothing happens to this one.

    Under torch.distributed every process calls it alike, and all return the smallest
    answer.

    Args:
        job: What is trained.
        memory: Bytes the whole step may take, with weights and optimizer; default:
            what is free now, less what others need.
        accumulation: Pieces a step is made of: with 2 or more, gradients are there
            while the next piece runs.
        margin: Share of the budget kept for longer examples than those looked at.
        verify: Whether to make real steps: at most four.
        device: ``"cuda"`` predicts for a CUDA device from a machine without one.
        ranks: Predict for one of so many processes that train together.
        sharded: With FSDP2, instead of DDP.
        watcher: Hears of progress.

    Raises:
        SettingError: Not even one example fits, or an argument makes no sense.
        JobError: The step does not run.

    Example:
        >>> import rightbatch as rb
        >>> law = rb.largest_batch(rb.load_job("digits"), 2**26, verify=False)
        >>> 100 < law.largest < 100_000
        True
    """
    check_batch_size(accumulation, "accumulation")
    check_batch_size(ranks, "ranks")
    if sharded and ranks == 1:
        raise SettingError("sharding needs several ranks", fix="ranks=8")
    watcher = watcher or Watcher()
    with preserved_rng():
        here = job_device(job)
        wanted = torch.device(device or here)
        budget = budget_for(wanted, memory, margin=margin)
        step = _StepMaker(job, min(accumulation, 2))  # a third piece is as the second
        watcher.phase("Trace a step", 2.0)
        envelope, why = _traced(step, wanted, here)
        envelope = envelope.on_ranks(ranks, sharded=sharded)
        watcher.done(envelope.method)
        check_room(envelope, budget.bytes)
        if not verify:
            why = why or "verify=False"
        elif ranks > 1:
            why = "a step of several processes is not tried"
        elif wanted.type != here.type:
            why = f"there is no {wanted.type} device here to try it on"
        found = None
        if not why:
            watcher.phase("Try real steps", 10.0)
            search = Search(step, here, envelope, budget.bytes, watcher.progress)
            why = search.run()
            envelope, found = search.envelope, None if why else search.best
            watcher.done(f"{len(step.trials)} trials")
        largest = found.micro_batch if found else envelope.largest(budget.bytes)
        largest = _agreed(min(largest, job.length))
    return MemoryLaw(
        largest=largest,
        budget=budget,
        envelope=envelope,
        certificate=Certificate(
            confidence="predicted" if why else "verified",
            method=envelope.method,
            trials=tuple(step.trials),
            predicted_bytes=round(envelope.peak(largest)),
            taken_bytes=found.taken if found else 0,
            why=why,
        ),
        example=step.example,
    )


class _StepMaker:
    """One job's step at any size: the batches, and the real steps made of them."""

    def __init__(self, job: Job, pieces: int) -> None:
        self.job, self.pieces = job, pieces
        self.trials: list[Trial] = []
        self.index, self.example = _longest(job)

    def batch(self, count: int) -> Any:
        """So many examples, each the longest one, on the CPU."""
        index = [self.index] * count
        return self.job.batch(index, torch.device("cpu"))

    def trial(
        self, size: int, device: torch.device, limit: float | None, exact: bool = False
    ) -> Trial:
        """A real step, kept in the list."""
        found = try_step(
            self.job,
            self.batch,
            size,
            device,
            limit=limit,
            pieces=self.pieces,
            exact=exact,
        )
        self.trials.append(found)
        return found


def job_device(job: Job) -> torch.device:
    """Where the job's parameters are: as it says, or as its factory puts them."""
    if job.device is not None:
        return torch.device(job.device)
    if isinstance(job.model, torch.nn.Module):
        return next(job.model.parameters()).device
    with FakeTensorMode():
        try:
            return next(job.make_model().parameters()).device
        except Exception:  # a factory that computes cannot be asked so
            pass
    return next(job.make_model().parameters()).device


def _longest(job: Job) -> tuple[int, str]:
    """The example with the most numbers among some, by which all is measured."""
    if isinstance(job.data, tuple):
        return 0, "all examples have one shape"
    stride = max(job.length // LOOKED_AT, 1)
    looked = range(0, job.length, stride)
    with blaming("the data set"):
        sizes = {i: _numbers(job.data[i]) for i in looked}
    index = max(sizes, key=lambda i: sizes[i])
    if len(set(sizes.values())) == 1:
        return index, f"{len(sizes)} examples looked at, all of one size"
    return index, f"the longest of {len(sizes)} examples looked at (number {index})"


def _numbers(example: Any) -> int:
    leaves = tree_leaves(example)
    tensors = sum(t.numel() for t in leaves if isinstance(t, Tensor))
    others = sum(len(t) if isinstance(t, (str, bytes)) else 1 for t in leaves)
    return tensors + others + sum(t.size for t in leaves if isinstance(t, np.ndarray))


def _traced(
    step: _StepMaker, wanted: torch.device, here: torch.device
) -> tuple[Envelope, str]:
    """The law by tracing: without running, on small real steps, or by two of those."""
    cuda, reasons = wanted.type == "cuda", []
    ways = [(sizes, False) for sizes in PROBES]
    if wanted.type == here.type:
        ways += [(sizes, True) for sizes in PROBES]
    for sizes, real in ways:
        try:
            found = probes_of(
                step.job,
                step.batch,
                sizes,
                pieces=step.pieces,
                cuda=cuda,
                real=real,
            )
        except CannotTrace as error:
            reasons.append(error)
            continue
        law = fit_envelope(found)
        if real:
            law = replace(law, method=f"{law.method}, run for it: {reasons[0].seen}")
        return law, ""
    if wanted.type != here.type:
        raise reasons[0]
    for sizes in REAL_PROBES:
        tried = [step.trial(size, here, None, exact=True) for size in sizes]
        if all(t.fits and t.allocated for t in tried):
            points = [
                MemoryPoint(micro_batch=t.micro_batch, peak_memory_bytes=t.allocated)
                for t in tried
            ]
            text = f"two real steps, of {sizes[0]} and {sizes[1]}: {reasons[-1].seen}"
            return replace(fit_points(points), method=text), ""
    last = step.trials[-1]
    raise JobError(
        f"the step does not run at {last.micro_batch} examples",
        seen=last.seen,
        why="its memory cannot be measured",
        fix="mend it, or see whether the loss needs more examples than that",
    ) from reasons[0]


class Search:
    """A few real steps around the predicted batch, in the order that tells the most.

    What a process grows by is a line in the predicted peak: libraries add a fixed part,
    and an allocator that cannot give back what lies between blocks a share of it. The
    line goes through the steps that fitted, and is inverted for the next.

    Args:
        step: Makes them.
        device: Where.
        envelope: The law; becomes calibrated.
        limit: Bytes.
        tell: Hears of progress.
    """

    def __init__(
        self,
        step: _StepMaker,
        device: torch.device,
        envelope: Envelope,
        limit: float,
        tell: Callable[[str], None],
    ) -> None:
        self.step, self.device, self.envelope = step, device, envelope
        self.limit, self.tell = limit, tell

    @property
    def best(self) -> Trial | None:
        """The largest step that came to its end within the limit."""
        fitting = [t for t in self.step.trials if t.fits and t.taken <= self.limit]
        return max(fitting, key=lambda t: t.micro_batch, default=None)

    def run(self) -> str:
        """Make the trials; why nothing is verified, or ``""``."""
        most = self.step.job.length
        fails, wanted = 2**62, max(1, min(self._first(), most))
        while len(self.step.trials) < TRIALS:
            self.tell(f"batch {wanted:,}")
            exact = not any(t.allocated for t in self.step.trials)
            found = self.step.trial(wanted, self.device, self.limit, exact)
            if found.fits is None:
                return found.seen
            self._calibrate(found)
            if found.fits:
                following = min(self._following(), most, fails - 1)
                if following <= ENOUGH * wanted:
                    break
                wanted = following
            else:
                low = self.best.micro_batch if self.best else 0
                first = fails == 2**62 and low
                fails = wanted
                between = (low + fails) // 2 if low >= fails // 4 else fails // 2
                wanted = max(between, int(NEAR * fails) if first else 1)
        return "" if self.best is not None else "no step fitted"

    def _calibrate(self, found: Trial) -> None:
        """Scale the law by what kernels take for themselves."""
        if not found.allocated or self.envelope.factor != 1.0:
            return
        size = found.micro_batch
        scaled = self.envelope.calibrated(size, found.allocated)
        if abs(scaled.peak(size) / self.envelope.peak(size) - 1) > EXACT:
            method = f"{self.envelope.method}, scaled by a real step of {size}"
            self.envelope = replace(scaled, method=method)

    def _first(self) -> int:
        """Where malloc may hold twice what is asked for, far below the limit."""
        share = FIRST_SHARE if self._hoards else NEAR
        return self.envelope.largest(share * self.limit)

    @property
    def _hoards(self) -> bool:
        """Whether malloc keeps what lies between blocks, as the C library does."""
        told = "MALLOC_MMAP_THRESHOLD_" in os.environ
        return self.device.type == "cpu" and not told

    def _following(self) -> int:
        """By the line through what fitted so far."""
        points = sorted(
            (self.envelope.peak(t.micro_batch), t.taken)
            for t in self.step.trials
            if t.fits
        )
        x, y = points[-1]
        slope = max(y / x, 1.0) if self._hoards else 1.0
        if len(points) > 1:
            (x0, y0), (x, y) = points[-2:]
            slope = max((y - y0) / max(x - x0, 1.0), 1.0)
        return int(BELOW * self.envelope.largest(x + (self.limit - y) / slope))


def _agreed(largest: int) -> int:
    """The smallest answer of all ranks. Collective where there are any."""
    ranks = torch.distributed
    if not (ranks.is_available() and ranks.is_initialized()):
        return largest
    answers: list[Any] = [None] * ranks.get_world_size()
    ranks.all_gather_object(answers, largest)
    return min(answers)
