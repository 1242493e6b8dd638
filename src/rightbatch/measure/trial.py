"""Running a real step where it can do no harm: in a child process under a limit."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from rightbatch.errors import RightbatchError
from rightbatch.job import Job, to_device
from rightbatch.measure.memory import allocator_peak, resident, silent
from rightbatch.oom import out_of_memory
from rightbatch.training import Training, accumulate

PATIENCE_S = 60.0  # a trial that takes longer is stopped [assumed]
STEPS = 2  # an allocator is fullest after it has been used once


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
        found = _guarded(step, micro_batch)
    elif not sys.platform.startswith("linux"):
        return Trial(micro_batch=micro_batch, fits=None, seen="no fork to try it in")
    else:
        found = _in_child(step, micro_batch, limit, patience_s)
    return replace(found, seconds=time.monotonic() - started)


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

        step(min(2, micro_batch), 1)  # makes the optimizer's state
        for _ in range(STEPS):
            step(micro_batch, pieces)
    allocated = gauge.allocated
    if exact and device.type == "cpu":
        training.optimizer.zero_grad(set_to_none=True)
        kept = {
            t.untyped_storage()._cdata: t.untyped_storage().nbytes()
            for t in tree_leaves(resident(training))
            if isinstance(t, Tensor)
        }
        peak = allocator_peak(lambda: step(micro_batch, pieces))
        allocated = sum(kept.values()) + peak
    fits = device.type == "cpu" or limit is None or gauge.taken <= limit
    return Trial(
        micro_batch=micro_batch, fits=fits, taken=gauge.taken, allocated=allocated
    )


def _guarded(step: Callable[[], Trial], micro_batch: int) -> Trial:
    """The trial; memory that runs out is an answer, another error is told."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return step()
    except Exception as error:
        memory = out_of_memory(error)
        if memory is not None:
            return Trial(micro_batch=micro_batch, fits=False, seen=memory.text[:120])
        text = error.what if isinstance(error, RightbatchError) else repr(error)
        seen = f"{text}: {error.seen}" if isinstance(error, RightbatchError) else text
        return Trial(micro_batch=micro_batch, fits=None, seen=seen[:200])


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
        self._before = _sizes()
        self.taken = 0

    def __exit__(self, *error: object) -> None:
        before, now = self._before, _sizes()
        other = (now["VmSize"] - before["VmSize"]) - (now["VmData"] - before["VmData"])
        self.taken = now["VmPeak"] - before["VmSize"] - max(other, 0)


def _sizes() -> dict[str, int]:
    """Bytes of this process's address space, by the kernel's names."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    rows = (line.split() for line in text.splitlines())
    return {
        row[0][:-1]: int(row[1]) * 1024
        for row in rows
        if row and row[0] in ("VmSize:", "VmPeak:", "VmData:")
    }


def _in_child(
    step: Callable[[], Trial],
    micro_batch: int,
    limit: float | None,
    patience_s: float,
) -> Trial:
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forking beside threads: the child uses none
        child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            _be_a_child(step, micro_batch, limit, writer)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        text = _read(reader, patience_s)
    finally:
        os.close(reader)
        _end(child)
    if text is None:
        seen = f"steps of {micro_batch:,} examples took more than {patience_s:.0f} s"
        return Trial(micro_batch=micro_batch, fits=None, seen=seen)
    if not text:  # ended without a word: killed, or out of memory in a destructor
        seen = "the process was ended by the system"
        return Trial(micro_batch=micro_batch, fits=False, seen=seen)
    return Trial(**json.loads(text))


def _be_a_child(
    step: Callable[[], Trial], micro_batch: int, limit: float | None, writer: int
) -> None:
    """In the child: limit the memory, try, tell, and end without cleaning up."""
    import resource

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    with silent():
        if limit is not None:
            data = _sizes()["VmData"] + int(limit)
            resource.setrlimit(resource.RLIMIT_DATA, (data, data))
        found = _guarded(step, micro_batch)
        fields = {name: getattr(found, name) for name in Trial.__slots__}
        os.write(writer, json.dumps(fields).encode())
    os._exit(0)


def _read(reader: int, patience_s: float) -> str | None:
    """All that the child says until it closes the pipe; None if that takes too long."""
    parts, ends = [], time.monotonic() + patience_s
    while True:
        ready, _, _ = select.select([reader], [], [], max(ends - time.monotonic(), 0))
        if not ready:
            return None
        part = os.read(reader, 65536)
        if not part:
            return b"".join(parts).decode()
        parts.append(part)


def _end(child: int) -> None:
    try:
        done, _ = os.waitpid(child, os.WNOHANG)
        if not done:
            time.sleep(0.01)
            done, _ = os.waitpid(child, os.WNOHANG)
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    except ChildProcessError:
        pass  # somebody else collects children here
