"""The largest batch that fits: predicted, tried in a safe place, certified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from rightbatch.core.arguments import whole_number
from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.guards import preserved_rng
from rightbatch.core.machine import free_memory_bytes
from rightbatch.core.progress import Watcher
from rightbatch.core.torch_private import FakeTensorMode
from rightbatch.core.units import show_bytes
from rightbatch.job.job import Job
from rightbatch.memory.boundary import Search, StepMaker
from rightbatch.memory.budget import Budget, budget_for
from rightbatch.memory.child_process import AVAILABLE, in_child
from rightbatch.memory.envelope import (
    Envelope,
    Segment,
    check_room,
)
from rightbatch.memory.step_law import trace_law
from rightbatch.memory.trial import PATIENCE_S, Trial

DEVICES = ("cpu", "cuda", "mps", "xpu")


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
        examples: How many the data set has: more are never the answer.
    """

    largest: int
    budget: Budget
    envelope: Envelope
    certificate: Certificate
    example: str
    examples: int

    def peak(self, batch: int) -> int:
        """Predicted most bytes of tensors alive in a step of so many examples."""
        whole_number(batch, "batch_size")
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
    if not isinstance(job, Job):
        raise SettingError("largest_batch takes a Job", seen=type(job).__name__)
    _check_count(accumulation, "accumulation")
    _check_count(ranks, "ranks")
    if not patience_s > 0:
        raise SettingError("patience must be positive", seen=f"{patience_s} s")
    if sharded and ranks == 1:
        raise SettingError(
            "sharding needs several ranks", seen="ranks 1", fix="ranks=8 (--ranks 8)"
        )
    how = _How(
        pieces=min(accumulation, 2),  # a third piece is as the second
        margin=margin,
        verify=verify,
        device=device,
        ranks=ranks,
        sharded=sharded,
        patience_s=patience_s,
        watcher=watcher or Watcher(),
    )
    with preserved_rng():
        return _together(lambda: _find(job, memory, how))


@dataclass(frozen=True, slots=True, kw_only=True)
class _How:
    """The arguments of `largest_batch`, checked."""

    pieces: int
    margin: float
    verify: bool
    device: str | None
    ranks: int
    sharded: bool
    patience_s: float
    watcher: Watcher


def _find(job: Job, memory: float | None, how: _How) -> MemoryLaw:
    here = job_device(job)
    wanted = here if how.device is None else _device_named(how.device)
    if wanted.index is None and wanted.type == here.type:
        wanted = here
    budget = budget_for(wanted, memory, margin=how.margin)
    step = StepMaker(job, how.pieces, how.patience_s)
    how.watcher.phase("Trace a step", 2.0)
    envelope = trace_law(step, wanted, here, budget.bytes)
    envelope = envelope.on_ranks(how.ranks, sharded=how.sharded)
    how.watcher.done(envelope.method.split(", run")[0].split(":")[0])
    check_room(envelope, budget.bytes)
    why, found = _unverifiable(how, budget, wanted, here), None
    largest = min(envelope.largest(budget.bytes), job.length)
    if not why:
        how.watcher.phase("Try real steps", how.patience_s)
        search = Search(step, here, envelope, budget.bytes, how.watcher.progress)
        why, envelope, found = search.run(), search.envelope, search.best
        largest = min(envelope.largest(budget.bytes), job.length, search.below)
        if found is not None:
            largest = found.micro_batch
        many = len(step.trials)
        how.watcher.done(f"{many} trial{'s' if many > 1 else ''}")
    if largest < 1:
        raise SettingError(
            "not even one example ran within this memory",
            seen=f"limit {show_bytes(budget.bytes)}; {why}",
            why=f"predicted were {show_bytes(envelope.peak(1))}",
            fix="more memory, or a smaller model",
        )
    return MemoryLaw(
        largest=largest,
        budget=budget,
        envelope=envelope,
        certificate=Certificate(
            confidence="predicted" if found is None else "verified",
            method=envelope.method,
            trials=tuple(step.trials),
            predicted_bytes=round(envelope.peak(largest)),
            taken_bytes=found.taken if found else 0,
            why=why,
        ),
        example=step.example,
        examples=job.length,
    )


def _unverifiable(
    how: _How, budget: Budget, wanted: torch.device, here: torch.device
) -> str:
    """Why no real step can be made; or nothing."""
    if not how.verify:
        return "no real step was asked for"
    if wanted != here:
        return f"the job runs on {here} here, not on {wanted}"
    if how.ranks > 1:
        return "a step of several processes is not tried"
    free = free_memory_bytes()
    if here.type == "cpu" and budget.bytes > free:
        return f"only {show_bytes(free)} are free here"
    return ""


def _together(find: Callable[[], MemoryLaw]) -> MemoryLaw:
    """The smallest answer of all ranks; an error of one is told by all. Collective."""
    ranks = torch.distributed
    if not (ranks.is_available() and ranks.is_initialized()):
        return find()
    law, error = None, None
    try:
        law = find()
    except Exception as failure:  # told once the others know
        error = failure
    answers: list[Any] = [None] * ranks.get_world_size()
    ranks.all_gather_object(answers, law.largest if law else None)
    if error is not None:
        raise error
    if law is None or None in answers:
        raise JobError(
            f"rank {answers.index(None)} found no largest batch",
            seen="this rank did",
            fix="see its error",
        )
    return replace(law, largest=min(answers))


def _device_named(name: str) -> torch.device:
    try:
        found = torch.device(name)
    except (RuntimeError, TypeError):
        found = torch.device("meta")
    if found.type not in DEVICES:
        raise SettingError(
            f"there is no device {name!r}", fix=f"one of {', '.join(DEVICES)}"
        )
    return found


def job_device(job: Job) -> torch.device:
    """Where the job's parameters are: as it says, or as its factory puts them.

    Raises:
        JobError: It has no parameters.
    """
    if job.device is not None:
        return torch.device(job.device)
    if isinstance(job.model, torch.nn.Module):
        return _first_device(job.model)

    def ask() -> str:
        with FakeTensorMode():
            return str(_first_device(job.make_model()))

    if AVAILABLE and not torch.cuda.is_initialized():
        answer = in_child(ask)
        if isinstance(answer.value, str):
            return torch.device(answer.value)
    return _first_device(job.make_model())  # a factory that computes


def _first_device(model: torch.nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    if first is None:
        raise JobError("the model has no parameters", fix="a model with some")
    return first.device


def _check_count(value: object, what: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingError(f"{what} is counted from 1", seen=f"{what}={value!r}")
