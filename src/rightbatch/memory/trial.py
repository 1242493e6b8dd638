"""A real step of one size: whether it fits under a limit, and what it takes."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from rightbatch.core.errors import JobError
from rightbatch.core.trees import to_device
from rightbatch.job.job import Job
from rightbatch.memory.child_process import AVAILABLE, attempt, data_sizes, in_child
from rightbatch.memory.peak import allocator_peak
from rightbatch.training.training import Training, accumulate

PATIENCE_S = 60.0  # a trial that takes longer is stopped [assumed]
# The last batch of an epoch is shorter. Kernels keep scratch for every size they have
# met: 9 % less fits on a CNN than after steps of one size [measured].
SHORTER = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One real step, or the attempt.

    Attributes:
        micro_batch: Examples in each piece.
        fits: Whether it came to its end; None if that was not found out.
        taken: Bytes the process, or the device's allocator, grew by at the most.
        allocated: The most bytes of tensors and kernels alive, where measured.
        seen: What happened otherwise.
        seconds: How long it took, all its steps together.
    """

    micro_batch: int
    fits: bool | None
    taken: int = 0
    allocated: int = 0
    seen: str = ""
    seconds: float = 0.0


MakeBatch = Callable[[int], Any]


def try_step(
    job: Job,
    make_batch: MakeBatch,
    micro_batch: int,
    device: torch.device,
    *,
    limit: float | None = None,
    pieces: int = 1,
    exact: bool = False,
    patience_s: float = PATIENCE_S,
) -> Trial:
    """Make real steps of one size and see whether they fit, and what they take.

    On the CPU of a Linux machine in a forked child, whose memory is limited by the
    kernel: whatever happens, this process is left as it was. On an accelerator in this
    process, where an allocation that fails is an exception, and all is freed again.

    Args:
        job: What is trained.
        make_batch: ``count ->`` a batch of so many examples.
        micro_batch: Examples in each piece.
        device: Where the job trains.
        limit: Bytes the step may take, weights and optimizer included.
        pieces: How many are accumulated.
        exact: Also read the allocator's own account (CPU; slower).
        patience_s: Seconds to wait for a child.
    """

    def step() -> Trial:
        return _steps(job, make_batch, micro_batch, pieces, device, limit, exact)

    started = time.monotonic()
    if device.type != "cpu":
        answer = attempt(step)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    elif AVAILABLE:
        answer = in_child(step, limit=limit, patience_s=patience_s)
    else:
        return Trial(micro_batch=micro_batch, fits=None, seen="no fork to try it in")
    seconds = time.monotonic() - started
    if isinstance(answer.value, Trial):
        return replace(answer.value, seconds=seconds)
    return Trial(
        micro_batch=micro_batch,
        fits=False if answer.memory else None,
        seen=answer.seen,
        seconds=seconds,
    )


def _steps(
    job: Job,
    make_batch: MakeBatch,
    micro_batch: int,
    pieces: int,
    device: torch.device,
    limit: float | None,
    exact: bool,
) -> Trial:
    gauge: Any = ReservedPeak(device) if device.type == "cuda" else DataPeak()
    with gauge:
        training = Training.start(job)

        def step(size: int, many: int) -> None:
            batches = (to_device(make_batch(size), device) for _ in range(many))
            accumulate(job, training.model, training.optimizer, batches, [size] * many)
            training.optimizer.step()

        step(micro_batch, pieces)  # makes the optimizer's state
        with contextlib.suppress(JobError):  # a loss may need so many examples
            step(max(1, round(SHORTER * micro_batch)), pieces)
        step(micro_batch, pieces)
    allocated = gauge.allocated
    if exact and device.type == "cpu":
        with contextlib.suppress(RuntimeError, MemoryError):  # of the account itself
            allocated = allocator_peak(training, lambda: step(micro_batch, pieces))
    taken = max(gauge.taken, allocated)
    fits = device.type == "cpu" or limit is None or taken <= limit
    return Trial(micro_batch=micro_batch, fits=fits, taken=taken, allocated=allocated)


class ReservedPeak:
    """What the CUDA allocator holds, at its highest."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._before = device, 0

    def __enter__(self) -> None:
        torch.cuda.synchronize(self.device)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        self._before = torch.cuda.memory_reserved(self.device)

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            torch.cuda.synchronize(self.device)

    @property
    def taken(self) -> int:
        """Bytes it grew by since the start."""
        return torch.cuda.max_memory_reserved(self.device) - self._before

    @property
    def allocated(self) -> int:
        """Bytes of tensors and workspaces at the highest."""
        return torch.cuda.max_memory_allocated(self.device)


class DataPeak:
    """What the kernel counts as a process's data, at its highest, since it was forked.

    That is what a memory limit is held against: with all that malloc holds back, and
    what kernels take for themselves. The kernel keeps the highest size of the whole
    address space exactly; what is no data (libraries loaded meanwhile) is taken off.
    """

    allocated = 0

    def __enter__(self) -> None:
        self._before = data_sizes()
        self.taken = 0

    def __exit__(self, *error: object) -> None:
        before, now = self._before, data_sizes()
        other = (now["VmSize"] - before["VmSize"]) - (now["VmData"] - before["VmData"])
        self.taken = now["VmPeak"] - before["VmSize"] - max(other, 0)
