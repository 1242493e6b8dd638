"""The memory law of a job's step: traced where it can be, else measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.trees import map_tensors, tensors
from rightbatch.job.job import Job
from rightbatch.memory.boundary import StepMaker
from rightbatch.memory.envelope import (
    Envelope,
    fit_envelope,
    fit_points,
    is_straight,
    misses,
)
from rightbatch.memory.points import MemoryPoint
from rightbatch.memory.surface import TokenLaw, fit_surface
from rightbatch.memory.traced_step import CannotTrace, Probe, probes_of
from rightbatch.memory.trial import Trial

# Sizes to trace at, and one to hold the law against where an operation is no line. The
# second where a step needs more examples, or where kernels change their ways.
PROBES = (((2, 8, 32), 64), ((16, 64, 128), 256))
REAL_PROBES = ((8, 16, 64, 128), (32, 64, 128), (8, 16))
LONG_S = 5.0  # a trace that took longer is not held against a larger one [assumed]
AGREES = 0.005  # relative error at that size that a law may have [assumed]


def trace_law(
    step: StepMaker, wanted: torch.device, here: torch.device, limit: float
) -> Envelope:
    """The law by tracing: without running, on small real steps, or by their peaks.

    Raises:
        JobError: The step runs at no size tried.
    """
    reasons: list[CannotTrace] = []
    tried: list[Trial] = []
    for real in (False, True) if wanted.type == here.type else (False,):
        for sizes, beyond in PROBES:
            try:
                law = _checked(step, sizes, beyond, wanted.type == "cuda", real, limit)
            except CannotTrace as error:
                reasons.append(error)
                continue
            if real:
                method = f"{law.method}, run for it: {reasons[0].seen}"
                law = replace(law, method=method)
            return law
    if wanted.type != here.type:
        raise reasons[0]
    for sizes in REAL_PROBES:
        tried = [step.probe(size, here, limit) for size in sizes]
        if all(t.fits and t.allocated for t in tried):
            points = [
                MemoryPoint(micro_batch=t.micro_batch, peak_memory_bytes=t.allocated)
                for t in tried
            ]
            text = f"real steps of {', '.join(map(str, sizes))}: {reasons[-1].seen}"
            return replace(fit_points(points), method=text)
    most = max(size for sizes in REAL_PROBES for size in sizes)
    raise JobError(
        f"the step runs at no size from 2 to {most} examples",
        seen=tried[-1].seen,
        why="its memory cannot be measured",
        fix="mend it; rightbatch check names the line",
    ) from reasons[0]


def _checked(
    step: StepMaker,
    sizes: tuple[int, ...],
    beyond: int,
    cuda: bool,
    real: bool,
    limit: float,
) -> Envelope:
    """A law that holds at a size beyond those it was made of."""

    def probes(*at: int) -> tuple[Probe, ...]:
        return probes_of(
            step.job,
            step.batch,
            at,
            pieces=step.pieces,
            cuda=cuda,
            real=real,
            limit=limit,
        )

    started = time.monotonic()
    found = probes(*sizes)
    law = fit_envelope(found)
    if is_straight(found) and time.monotonic() - started > LONG_S:
        return law
    (other,) = probes(beyond)
    if other.operations != found[0].operations or misses(law, other) > AGREES:
        raise CannotTrace(
            "memory follows neither a line nor a square of the batch",
            seen=f"the law of {', '.join(map(str, sizes))} examples misses "
            f"{misses(law, other):.1%} at {beyond}",
        )
    return law


def token_law(job: Job, lengths: Sequence[int] | None = None) -> TokenLaw:
    """Trace a step at several batches and lengths: how many tokens fit, at any length.

    The second axis that the tensors of a batch share is taken for the length, and cut
    or repeated.

    Args:
        job: Its batches hold tensors of shape (examples, length, ...).
        lengths: Three or more to trace at; default: a quarter, a half and the whole of
            the longest example's.

    Raises:
        SettingError: There is no such axis, or a length makes no sense; or memory
            bends with the batch, as where examples meet.
        JobError: The step needs numbers that only a real run has, or cannot run at a
            length.

    Example:
        >>> import torch, rightbatch as rb
        >>> from rightbatch.memory.step_law import token_law
        >>> job = rb.Job(
        ...     model=lambda: torch.nn.Embedding(100, 64),
        ...     loss=lambda model, batch: model(batch[0]).square().mean(),
        ...     data=(torch.zeros(50, 32, dtype=torch.long),),
        ...     optimizer=torch.optim.AdamW,
        ...     batch_size=8,
        ... )
        >>> law = token_law(job, (8, 16, 32))
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
    given = (shared // 4, shared // 2, shared) if lengths is None else lengths
    wanted = sorted({int(length) for length in given})
    whole = all(float(length).is_integer() for length in given)
    if len(wanted) < 3 or wanted[0] < 1 or not whole:
        raise SettingError(
            "three different lengths are needed", seen=str(wanted), fix="128,512,2048"
        )
    found: dict[tuple[int, int], Probe] = {}
    for length in wanted:
        index = torch.arange(length) % shared

        def batch(count: int, index: Tensor = index) -> Any:
            return map_tensors(
                lambda t: (
                    t.index_select(1, index)
                    if t.ndim > 1 and t.shape[1] == shared
                    else t
                ),
                step.batch(count),
            )

        *fitted, other = probes_of(job, batch, (2, 4, 16))
        found.update({(p.micro_batch, length): p for p in fitted})
    law = fit_surface(found)
    error = misses(law.at(wanted[-1]), other)
    if error > AGREES:
        raise SettingError(
            "memory is no product of batch and length",
            seen=f"the law misses {error:.1%} at 16 examples of {wanted[-1]}",
            why="its examples meet, or its kernels change with the batch",
            fix="rb.largest_batch(job, memory) at the length that is trained",
        )
    return law


def _length(batch: Any) -> int | None:
    """The second axis that all tensors with one share."""
    axes = {t.shape[1] for t in tensors(batch) if t.ndim > 1}
    return axes.pop() if len(axes) == 1 and min(axes) >= 4 else None
