"""The largest batch that fits: predicted, tried in a safe place, certified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from rightbatch.boundary import Search, StepMaker
from rightbatch.errors import JobError, SettingError
from rightbatch.fit.envelope import (
    Envelope,
    Segment,
    check_room,
    fit_envelope,
    fit_points,
)
from rightbatch.fit.surface import TokenLaw, fit_surface
from rightbatch.isolation import preserved_rng
from rightbatch.job import Job, check_batch_size
from rightbatch.measure.budget import Budget, budget_for
from rightbatch.measure.record import MemoryPoint
from rightbatch.measure.traced_step import CannotTrace, Probe, probes_of
from rightbatch.measure.trial import PATIENCE_S, Trial
from rightbatch.watch import Watcher

PROBES = ((2, 4, 8), (16, 32, 64))  # the second where a step needs more examples
REAL_PROBES = ((8, 16), (32, 64))


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
    patience_s: float = PATIENCE_S,
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
        patience_s: Longest time for one of the real steps.
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
    if not patience_s > 0:
        raise SettingError("patience must be positive", seen=f"{patience_s} s")
    if sharded and ranks == 1:
        raise SettingError("sharding needs several ranks", fix="ranks=8")
    watcher = watcher or Watcher()
    with preserved_rng():
        here = job_device(job)
        wanted = torch.device(device or here)
        budget = budget_for(wanted, memory, margin=margin)
        # A third piece is as the second.
        step = StepMaker(job, min(accumulation, 2), patience_s)
        watcher.phase("Trace a step", 2.0)
        envelope, why = trace_law(step, wanted, here)
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
            watcher.phase("Try real steps", patience_s)
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


def trace_law(
    step: StepMaker, wanted: torch.device, here: torch.device
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


def _agreed(largest: int) -> int:
    """The smallest answer of all ranks. Collective where there are any."""
    ranks = torch.distributed
    if not (ranks.is_available() and ranks.is_initialized()):
        return largest
    answers: list[Any] = [None] * ranks.get_world_size()
    ranks.all_gather_object(answers, largest)
    return min(answers)


def token_law(job: Job, lengths: Sequence[int] | None = None) -> TokenLaw:
    """Trace a step at several batches and lengths: how many tokens fit, at any length.

    The second axis that the tensors of a batch share is taken for the length, and cut
    or repeated.

    Args:
        job: Its batches hold tensors of shape (examples, length, ...).
        lengths: Three or more to trace at; default: a quarter, a half and the whole of
            the longest example's.

    Raises:
        SettingError: There is no such axis, or a length makes no sense.
        JobError: The step needs numbers that only a real run has, or cannot run at a
            length.

    Example:
        >>> import torch, rightbatch as rb
        >>> job = rb.Job(
        ...     model=lambda: torch.nn.Embedding(100, 64),
        ...     loss=lambda model, batch: model(batch[0]).square().mean(),
        ...     data=(torch.zeros(50, 32, dtype=torch.long),),
        ...     optimizer=torch.optim.AdamW,
        ...     batch_size=8,
        ... )
        >>> law = rb.token_law(job, (8, 16, 32))
        >>> [law.largest(2**24, length) for length in (8, 64, 512)]
        [1620, 202, 25]
    """
    step = StepMaker(job, 1)
    shared = _length(step.batch(2))
    if shared is None:
        raise SettingError(
            "the batch has no axis of length",
            seen="its tensors share no second axis of 4 or more",
            why="how memory grows with length cannot be told",
            fix="batches of shape (examples, length)",
        )
    wanted = sorted(set(lengths or (shared // 4, shared // 2, shared)))
    if len(wanted) < 3 or wanted[0] < 1:
        raise SettingError(
            "three different lengths are needed", seen=str(wanted), fix="128,512,2048"
        )
    found: dict[tuple[int, int], Probe] = {}
    for length in wanted:
        index = torch.arange(length) % shared

        def batch(count: int, index: Tensor = index) -> Any:
            return tree_map_only(
                Tensor,
                lambda t: (
                    t.index_select(1, index)
                    if t.ndim > 1 and t.shape[1] == shared
                    else t
                ),
                step.batch(count),
            )

        for probe in probes_of(job, batch, (2, 4)):
            found[probe.micro_batch, length] = probe
    return fit_surface(found)


def _length(batch: Any) -> int | None:
    """The second axis that all tensors with one share."""
    axes = {
        t.shape[1] for t in tree_leaves(batch) if isinstance(t, Tensor) and t.ndim > 1
    }
    return axes.pop() if len(axes) == 1 and min(axes) >= 4 else None
