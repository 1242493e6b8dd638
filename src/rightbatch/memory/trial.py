"""Real steps of one size: whether they fit under a limit, and what they take."""

from __future__ import annotations

import contextlib
import gc
import time
from dataclasses import dataclass, replace

import torch

from rightbatch.core.errors import JobError
from rightbatch.core.trees import to_device
from rightbatch.memory.child_process import AVAILABLE, Answer, attempt, in_child
from rightbatch.memory.peak import GrowthPeak, allocator_peak
from rightbatch.memory.step import Step

PATIENCE_S = 60.0  # a trial that takes longer is stopped [assumed]
# The last batch of an epoch is shorter. Kernels keep scratch for every size they have
# met: 9 % less fits on a CNN than after steps of one size [measured].
SHORTER = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Real steps of one size, or the attempt.

    Attributes:
        micro_batch: Examples in each micro-batch.
        fits: Whether they came to their end; False: memory ran out; None: neither.
        late: Whether they were stopped for the time they took.
        taken: Bytes the process, or the device's allocator, grew by at the most.
        allocated: The most bytes of tensors and kernels alive, where measured.
        seen: What happened otherwise.
        seconds: How long all of them took together.
    """

    micro_batch: int
    fits: bool | None
    late: bool = False
    taken: int = 0
    allocated: int = 0
    seen: str = ""
    seconds: float = 0.0


def no_safe_place(device: torch.device) -> str:
    """Why nothing can be tried on a device without harm to this process; or nothing."""
    if device.type == "cuda" or (device.type == "cpu" and AVAILABLE):
        return ""
    return f"there is no safe place here to try it on {device.type}"


def try_step(
    step: Step,
    micro_batch: int,
    device: torch.device,
    *,
    limit: float | None = None,
    exact: bool = False,
    patience_s: float = PATIENCE_S,
) -> Trial:
    """Make a step of one size, a shorter one, and the first again.

    On the CPU of a Linux machine in a forked child, whose memory is limited by the
    kernel: whatever happens, this process is left as it was. On a CUDA device in this
    process, where an allocation that fails is an exception, and all is freed again.
    Elsewhere nothing is tried.

    Args:
        step: What is tried.
        micro_batch: Examples in each micro-batch.
        device: Where the job trains.
        limit: Bytes the step may take, weights and optimizer included.
        exact: Also read the allocator's own account (CPU; slower).
        patience_s: Seconds to wait for a child.
    """

    def run() -> Trial:
        return _steps(step, micro_batch, device, limit, exact)

    started = time.monotonic()
    if device.type == "cuda":
        answer = attempt(run)
        gc.collect()
        torch.cuda.empty_cache()
    elif not no_safe_place(device):
        answer = in_child(run, limit=limit, patience_s=patience_s)
    else:
        answer = Answer(seen=no_safe_place(device))
    seconds = time.monotonic() - started
    if isinstance(answer.value, Trial):
        return replace(answer.value, seconds=seconds)
    return Trial(
        micro_batch=micro_batch,
        fits=False if answer.memory else None,
        late=answer.late,
        seen=answer.seen,
        seconds=seconds,
    )


def _steps(
    step: Step,
    micro_batch: int,
    device: torch.device,
    limit: float | None,
    exact: bool,
) -> Trial:
    growth = GrowthPeak(device)
    model = step.job.make_model()
    optimizer = step.job.make_optimizer(model)

    def run(size: int = micro_batch) -> None:
        counts = range(step.accumulation)
        batches = (to_device(step.batch(size), device) for _ in counts)
        step.run(model, optimizer, batches, size)

    run()  # makes the optimizer's state
    with contextlib.suppress(JobError):  # a loss may need so many examples
        run(max(1, round(SHORTER * micro_batch)))
    run()
    taken, allocated = growth.read()
    if exact and device.type == "cpu":
        with contextlib.suppress(RuntimeError, MemoryError):  # of the account itself
            allocated = allocator_peak(model, optimizer, run)
    taken = max(taken, allocated)
    fits = device.type == "cpu" or limit is None or taken <= limit
    return Trial(micro_batch=micro_batch, fits=fits, taken=taken, allocated=allocated)
