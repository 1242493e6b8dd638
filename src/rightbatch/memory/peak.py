"""Peak memory of one training step, measured on the device it runs on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from rightbatch.core.trees import tensors
from rightbatch.memory.live_bytes import LiveBytes
from rightbatch.memory.points import MemoryPoint
from rightbatch.training.training import Training


def measure_memory(training: Training, micro_batch: int) -> MemoryPoint:
    """Peak bytes of a full step at one micro-batch, optimizer state already there.

    On a CUDA device this is the allocator's own peak; elsewhere the sum of tensors
    alive. One step is taken on ``training``.

    Args:
        training: A run that has made at least one step.
        micro_batch: Examples in the step.
    """
    device = training.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        training.step(micro_batch)
        torch.cuda.synchronize(device)
        peak = int(torch.cuda.max_memory_allocated(device))
        return MemoryPoint(micro_batch=micro_batch, peak_memory_bytes=peak)
    training.optimizer.zero_grad(set_to_none=True)
    with LiveBytes() as counter:
        counter.add(resident(training))
        training.step(micro_batch)
    return MemoryPoint(micro_batch=micro_batch, peak_memory_bytes=counter.peak)


def resident(training: Training) -> list[Any]:
    """The tensors that are there between steps: weights, buffers, optimizer state."""
    state = [list(s.values()) for s in training.optimizer.state.values()]
    return [
        list(training.model.parameters()),
        list(training.model.buffers()),
        state,
    ]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Send what libraries write to standard error to nowhere."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def allocator_peak(training: Training, step: Callable[[], None]) -> int:
    """Most bytes torch's CPU allocator had handed out while ``step()`` ran.

    Unlike `LiveBytes` this sees what kernels take for themselves.

    Args:
        training: Whose step it is; its gradients are dropped first.
        step: Makes it.
    """
    from torch.profiler import ProfilerActivity, profile

    training.optimizer.zero_grad(set_to_none=True)
    kept = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes()
        for t in tensors(resident(training))
    }
    with (
        silent(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        step()
    assert profiler.profiler is not None
    result: Any = profiler.profiler.kineto_results
    events = [e for e in result.events() if e.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return sum(kept.values()) + peak
