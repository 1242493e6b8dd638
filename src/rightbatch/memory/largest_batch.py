"""The largest batch that fits: predicted, tried in a safe place, certified."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.guards import preserved_rng
from rightbatch.core.machine import free_memory_bytes
from rightbatch.core.progress import Progress
from rightbatch.core.real_number import real_number
from rightbatch.core.shown_as_text import ShownAsText
from rightbatch.core.torch_private import FakeTensorMode
from rightbatch.core.units import show_bytes
from rightbatch.core.whole_number import whole_number
from rightbatch.job.job import Job, check_content
from rightbatch.memory.boundary import Search, malloc_hoards
from rightbatch.memory.budget import Budget, budget_for
from rightbatch.memory.child_process import AVAILABLE, in_child
from rightbatch.memory.envelope import Envelope, Segment, check_room
from rightbatch.memory.step import step_of
from rightbatch.memory.step_law import trace_law
from rightbatch.memory.trial import PATIENCE_S, Trial, no_safe_place, try_step

DEVICES = ("cpu", "cuda", "mps", "xpu")
TRACE_S = 2.0  # that tracing a step usually takes [assumed]


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


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class MemoryLaw(ShownAsText):
    """Peak memory against micro-batch, and the largest one within a budget.

    Attributes:
        largest: Examples in one micro-batch; no more than the data set has.
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
        return round(self.envelope.peak(whole_number(batch, "batch_size")))

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
    progress: Progress | None = None,
) -> MemoryLaw:
    """Find the largest micro-batch whose whole step fits in memory.

    The step is traced without running it, at three small batches; the law of its peak
    is inverted; then a few real steps are made around the answer, on the CPU in a
    child process under that limit, so that nothing happens to this one.

    Under torch.distributed every process calls it alike, and all return the smallest
    answer, each with its own certificate.

    Args:
        job: What is trained.
        memory: Bytes the whole step may take, with weights and optimizer; default:
            what is free now, less what others need.
        accumulation: Micro-batches a step is made of: with 2 or more, gradients are
            there while the next one runs.
        margin: Share of the budget kept for longer examples than those looked at.
        verify: Whether to make real steps: at most four from the first that runs on.
        device: ``"cuda"`` predicts for a CUDA device from a machine without one.
        ranks: Predict for one of so many processes that train together.
        sharded: With FSDP2, instead of DDP.
        patience_s: Longest time for one of the real steps.
        progress: Hears of the phases; default: nobody does.

    Raises:
        SettingError: Not even one example fits, or an argument makes no sense.
        JobError: The step does not run at any size.

    Example:
        >>> import rightbatch as rb
        >>> law = rb.largest_batch(rb.load_job("digits"), 2**26, verify=False)
        >>> 100 < law.largest < 100_000
        True
    """
    if not isinstance(job, Job):
        raise SettingError("largest_batch takes a Job", seen=type(job).__name__)
    accumulation = whole_number(accumulation, "accumulation")
    ranks = whole_number(ranks, "ranks")
    patience_s = real_number(patience_s, "patience_s", positive=True)
    if sharded and ranks == 1:
        raise SettingError(
            "sharding needs several ranks", seen="ranks 1", fix="ranks=8 (--ranks 8)"
        )
    progress = progress or Progress()
    with preserved_rng():
        here = job_device(job)
        target = here if device is None else _device_named(device, here)
        budget = budget_for(target, memory, margin=margin)
        step = step_of(job, min(accumulation, 2))  # a third piece is as the second

        with progress.phase("Trace a step", TRACE_S) as phase:
            envelope = trace_law(step, target, here, budget.bytes, patience_s)
            envelope = envelope.on_ranks(ranks, sharded=sharded)
            phase.summary = envelope.method.split(", run")[0].split(":")[0]
        check_room(envelope, budget.bytes)

        def make_trial(size: int, exact: bool) -> Trial:
            return try_step(
                step,
                size,
                here,
                limit=budget.bytes,
                exact=exact,
                patience_s=patience_s,
            )

        search = Search(
            make_trial,
            envelope,
            limit=budget.bytes,
            most=job.length,
            hoards=malloc_hoards(here),
            patience_s=patience_s,
        )
        why = _why_not_tried(verify, budget, target, here, ranks)
        if not why:
            with progress.phase("Try real steps", patience_s) as phase:
                why = search.run(phase.update)
                many = len(search.trials)
                phase.summary = f"{many} trial{'s' if many > 1 else ''}"
    if search.best is None and search.failure is not None:
        raise JobError(
            f"no step runs: that of {search.failure.micro_batch:,} examples fails, "
            "and not for memory",
            seen=search.failure.seen,
            why="the answer would be a batch that was never run",
            fix="mend it; rightbatch check names the line",
        )
    if search.largest < 1:
        raise SettingError(
            "not even one example ran within this memory",
            seen=f"limit {show_bytes(budget.bytes)}; {why}",
            why=f"predicted were {show_bytes(search.envelope.peak(1))}",
            fix="more memory, or a smaller model",
        )
    return _certified(search, budget, why, step.example)


def _why_not_tried(
    verify: bool,
    budget: Budget,
    target: torch.device,
    here: torch.device,
    ranks: int,
) -> str:
    """Why no real step can be made; or nothing."""
    if not verify:
        return "no real step was asked for"
    if target != here:
        return f"the job runs on {here} here, not on {target}"
    if ranks > 1:
        return "a step of several processes is not tried"
    if unsafe := no_safe_place(here):
        return unsafe
    free = free_memory_bytes()
    if here.type == "cpu" and budget.bytes > free:
        return f"only {show_bytes(free)} are free here"
    return ""


def _certified(search: Search, budget: Budget, why: str, example: str) -> MemoryLaw:
    """The answer with what stands behind it; of all ranks the smallest. Collective."""
    best, largest = search.best, search.largest
    if dist.is_available() and dist.is_initialized():
        answers: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(answers, largest)
        largest = min(answers)
    certificate = Certificate(
        confidence="predicted" if best is None else "verified",
        method=search.envelope.method,
        trials=tuple(search.trials),
        predicted_bytes=round(search.envelope.peak(search.largest)),
        taken_bytes=best.taken if best else 0,
        why=why,
    )
    return MemoryLaw(
        largest=largest,
        budget=budget,
        envelope=search.envelope,
        certificate=certificate,
        example=example,
        examples=search.most,
    )


def _device_named(name: str, here: torch.device) -> torch.device:
    """The device of this name; the job's own where only its kind is named."""
    if not re.fullmatch(rf"({'|'.join(DEVICES)})(:\d+)?", str(name)):
        raise SettingError(
            f"there is no device {name!r}", fix=f"one of {', '.join(DEVICES)}"
        )
    device = torch.device(name)
    return here if device.index is None and device.type == here.type else device


def job_device(job: Job) -> torch.device:
    """Where the job's parameters are: as it says, or as its factory puts them.

    Raises:
        JobError: It has no parameters, or holds no numbers.
    """
    if isinstance(job.model, torch.nn.Module):
        check_content(job.model)
        if job.device is None:
            return _first_device(job.model)
    if job.device is not None:
        return torch.device(job.device)

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
