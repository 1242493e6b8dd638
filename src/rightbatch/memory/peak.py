"""Peak memory of a step that really runs: of its tensors, an allocator, a process."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rightbatch.core.torch_private import allocations, storage_id
from rightbatch.core.trees import tensors
from rightbatch.memory.child_process import data_sizes
from rightbatch.memory.live_bytes import LiveBytes
from rightbatch.memory.points import MemoryPoint
from rightbatch.training.run_state import RunState


def measure_memory(run: RunState, micro_batch: int) -> MemoryPoint:
    """Peak bytes of a full step at one micro-batch, optimizer state already there.

    On a CUDA device this is the allocator's own peak; elsewhere the sum of tensors
    alive. One step is taken on ``run``.

    Args:
        run: It has made at least one step.
        micro_batch: Examples in the step.
    """
    device = run.device
    run.split(micro_batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        run.step()
        torch.cuda.synchronize(device)
        peak = int(torch.cuda.max_memory_allocated(device))
    else:
        run.optimizer.zero_grad(set_to_none=True)
        with LiveBytes() as counter:
            counter.add(resident(run.model, run.optimizer))
            run.step()
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
        storage_id(tensor): tensor.untyped_storage().nbytes()
        for tensor in tensors(resident(model, optimizer))
    }
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    sizes = itertools.accumulate(allocations(profiler), initial=0)
    return sum(storages.values()) + max(sizes)


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
