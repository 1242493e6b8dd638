"""Peak memory of a step that really runs: of its tensors, an allocator, a process."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from rightbatch.memory.child_process import data_sizes
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
    else:
        training.optimizer.zero_grad(set_to_none=True)
        with LiveBytes() as counter:
            counter.add(resident(training.model, training.optimizer))
            training.step(micro_batch)
        peak = counter.peak
    return MemoryPoint(micro_batch=micro_batch, peak_memory_bytes=peak)


def resident(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """The tensors there between steps: parameters, buffers, optimizer state."""
    state = [list(values.values()) for values in optimizer.state.values()]
    return [list(model.parameters()), list(model.buffers()), state]


def allocator_peak(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: Callable[[], None]
) -> int:
    """Most bytes torch's CPU allocator had handed out while ``step()`` ran.

    Unlike `LiveBytes` this sees what kernels take for themselves.

    Args:
        model: What the step trains; its gradients are dropped first.
        optimizer: Its optimizer, which has made a step before.
        step: Makes the step.
    """
    from torch.profiler import ProfilerActivity, profile

    optimizer.zero_grad(set_to_none=True)
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for tensor in tree_leaves(resident(model, optimizer))
        if isinstance(tensor, torch.Tensor)
    }
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None
    result: Any = profiler.profiler.kineto_results
    events = [event for event in result.events() if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return sum(storages.values()) + peak


class GrowthPeak:
    """The most bytes that this process, or the CUDA allocator, grows by from now on.

    Of a process it is what the kernel counts as its data, since it was forked: what a
    memory limit is held against, with all that malloc holds back, and what kernels take
    for themselves. The kernel keeps the highest size of the whole address space
    exactly; what is no data (libraries loaded meanwhile) is taken off.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        if self._cuda is None:
            self._before = data_sizes()
            return
        torch.cuda.synchronize(device)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        self._before = {"reserved": torch.cuda.memory_reserved(device)}

    def read(self) -> tuple[int, int]:
        """Bytes taken, and those of tensors and workspaces (0: not known)."""
        before = self._before
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
            reserved = torch.cuda.max_memory_reserved(self._cuda) - before["reserved"]
            return reserved, torch.cuda.max_memory_allocated(self._cuda)
        now = data_sizes()
        other = (now["VmSize"] - before["VmSize"]) - (now["VmData"] - before["VmData"])
        return now["VmPeak"] - before["VmSize"] - max(other, 0), 0
