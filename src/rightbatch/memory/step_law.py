"""The memory law of a job's step: traced where it can be, else measured."""

from __future__ import annotations

from dataclasses import replace

import torch

from rightbatch.core.errors import JobError
from rightbatch.memory.envelope import Envelope, fit_envelope, fit_points
from rightbatch.memory.points import MemoryPoint
from rightbatch.memory.step import Step
from rightbatch.memory.traced_step import UntraceableError, trace_step
from rightbatch.memory.trial import PATIENCE_S, Trial, try_step

# Three sizes to trace at, and one that the law must hold at. The second row where a
# step needs more examples, or where kernels change their ways.
TRACED_SIZES = (((2, 8, 32), 64), ((16, 64, 128), 256))
MEASURED_SIZES = ((8, 16, 64, 128), (32, 64, 128), (8, 16))
AGREES = 0.005  # relative error at the fourth size that a law may have [assumed]


def trace_law(
    step: Step,
    target: torch.device,
    device: torch.device,
    limit: float,
    patience_s: float = PATIENCE_S,
) -> Envelope:
    """The law by tracing: without running, on small real steps, or by their peaks.

    Args:
        step: Whose memory is asked for.
        target: The device it is predicted for.
        device: Where the job trains here; real steps need that to be the target.
        limit: Bytes that those may take.
        patience_s: Longest time for one of them.

    Raises:
        JobError: The step runs at no size tried.
    """
    reasons: list[UntraceableError] = []
    cuda = target.type == "cuda"
    for real in (False, True) if target.type == device.type else (False,):
        for sizes, beyond in TRACED_SIZES:
            try:
                law = _traced_law(step, sizes, beyond, cuda, real, limit)
            except UntraceableError as error:
                reasons.append(error)
                continue
            if not real:
                return law
            return replace(law, method=f"{law.method}, run for it: {reasons[0].seen}")
    if target.type != device.type:
        raise reasons[0]
    return _measured_law(step, device, limit, patience_s, reasons)


def _traced_law(
    step: Step,
    sizes: tuple[int, ...],
    beyond: int,
    cuda: bool,
    real: bool,
    limit: float,
) -> Envelope:
    """A law that holds at a size beyond those it was made of."""
    *traces, larger = trace_step(
        step, (*sizes, beyond), cuda=cuda, real=real, limit=limit
    )
    law = fit_envelope(traces)
    error = law.relative_error(larger)
    if error > AGREES:
        raise UntraceableError(
            "memory follows neither a line nor a square of the batch",
            seen=f"the law of {', '.join(map(str, sizes))} examples misses "
            f"{error:.1%} at {beyond}",
        )
    return law


def _measured_law(
    step: Step,
    device: torch.device,
    limit: float,
    patience_s: float,
    reasons: list[UntraceableError],
) -> Envelope:
    """The lines between the peaks of real steps, where no trace gave a law."""
    trials: list[Trial] = []
    for sizes in MEASURED_SIZES:
        trials = [
            try_step(step, size, device, limit=limit, exact=True, patience_s=patience_s)
            for size in sizes
        ]
        if all(trial.fits and trial.allocated for trial in trials):
            points = [
                MemoryPoint(micro_batch=t.micro_batch, peak_memory_bytes=t.allocated)
                for t in trials
            ]
            method = f"real steps of {', '.join(map(str, sizes))}: {reasons[-1].seen}"
            return replace(fit_points(points), method=method)
    raise JobError(
        f"the step runs at no size from {TRACED_SIZES[0][0][0]} to "
        f"{max(map(max, MEASURED_SIZES))} examples",
        seen=trials[-1].seen,
        why="its memory cannot be measured",
        fix="mend it; rightbatch check names the line",
    ) from reasons[0]
