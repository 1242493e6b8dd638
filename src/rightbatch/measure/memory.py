"""Peak memory of one training step, as torch sees it."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from rightbatch.measure.record import MemoryPoint
from rightbatch.training import Training


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensor storages alive, and the most there ever were.

    Memory that a kernel takes and gives back inside one operation is not seen: on a
    CPU convolution some 10 % are missing (docs/how-it-decides.md).
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.current = self.peak = 0

    def add(self, tensors: Any) -> None:
        """Count the storages in any nesting of tensors, each once."""
        for leaf in tree_iter(tensors):
            if not isinstance(leaf, torch.Tensor):
                continue
            storage = leaf.untyped_storage()
            key = storage._cdata
            if key not in self.live:
                self.live[key] = storage.nbytes()
                self.current += self.live[key]
                self.peak = max(self.peak, self.current)
                weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.current -= self.live.pop(key, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, then count what it made."""
        result = func(*args, **(kwargs or {}))
        self.add(result)
        return result


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
        counter.add(list(training.model.parameters()))
        counter.add(list(training.model.buffers()))
        counter.add(
            [list(state.values()) for state in training.optimizer.state.values()]
        )
        training.step(micro_batch)
    return MemoryPoint(micro_batch=micro_batch, peak_memory_bytes=counter.peak)
