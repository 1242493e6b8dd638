"""Counting the bytes of tensors alive, operation by operation."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rightbatch.core.torch_private import (
    TorchDispatchMode,
    in_backward_pass,
    storage_id,
)
from rightbatch.core.trees import tensors


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensor storages alive, and the most there ever were.

    Memory that a kernel takes and gives back inside one operation is not seen: on a
    CPU convolution some 10 % are missing (docs/memory.md).
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.current = self.peak = 0

    def add(self, nested: Any) -> None:
        """Count the storages in any nesting of tensors, each once."""
        for tensor in tensors(nested):
            storage = tensor.untyped_storage()
            key = storage_id(tensor)
            if key not in self.live:
                self.live[key] = storage.nbytes()
                self._change(self.live[key])
                self.peak = max(self.peak, self.current)
                weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self._change(-self.live.pop(key, 0))

    def _change(self, size: int) -> None:
        self.current += size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, then count what it made."""
        result = func(*args, **(kwargs or {}))
        self.add(result)
        return result


class LiveTrace(LiveBytes):
    """`LiveBytes` that also keeps, for every operation, what was alive after it.

    Args:
        rounding: An allocator hands out multiples of so many bytes.

    Attributes:
        bytes: After each operation, as asked for.
        wasted: What rounding adds to it.
        operations: ``"aten.mm"``, in order.
        places: ``"forward"``, ``"backward"`` or ``"update"``, with the module it runs
            in where that is known: ``"forward in blocks.0"``.
    """

    def __init__(self, rounding: int = 1) -> None:
        super().__init__()
        self.rounding, self._waste = rounding, 0
        self.bytes: list[int] = []
        self.wasted: list[int] = []
        self.operations: list[str] = []
        self.places: list[str] = []
        self._modules: list[str] = []
        self._updating = False

    @contextmanager
    def watching(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Iterator[None]:
        """Know where in a step an operation runs."""
        hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._update(True)),
            optimizer.register_step_post_hook(lambda *_: self._update(False)),
        ]
        for name, module in model.named_modules():
            if name:
                hooks += [
                    module.register_forward_pre_hook(self._entering(name)),
                    module.register_forward_hook(self._leaving, always_call=True),
                ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, count what it made, and keep the sum."""
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.bytes.append(self.current)
        self.wasted.append(self._waste)
        self.operations.append(str(func.overloadpacket))
        self.places.append(self._place())
        return result

    def _change(self, size: int) -> None:
        super()._change(size)
        waste = -abs(size) % self.rounding
        self._waste += waste if size > 0 else -waste

    def _place(self) -> str:
        if self._updating:
            return "update"
        # A checkpointed block runs its forward pass again inside the backward pass.
        phase = "backward" if in_backward_pass() else "forward"
        return f"{phase} in {self._modules[-1]}" if self._modules else phase

    def _update(self, now: bool) -> None:
        self._updating = now

    def _entering(self, name: str) -> Any:
        return lambda module, args: self._modules.append(name)

    def _leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._modules:
            self._modules.pop()
