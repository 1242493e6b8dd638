"""The micro-batches of an accumulated step are groups: their norms are nearly free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rightbatch.noise.capture.group_norms import Key, Observer
from rightbatch.noise.capture.rules import square, wide


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product, summed in single precision at least."""
    kind = wide(a)
    if a.dtype == b.dtype == kind and a.is_contiguous() and b.is_contiguous():
        return torch.dot(a.view(-1), b.view(-1))
    return (a.to(kind) * b.to(kind)).sum()


@dataclass
class MicroBatches:
    """Reads every micro-batch's gradient just before it is added to ``.grad``.

    What has been accumulated is the sum of the micro-batches before, so the norm of the
    whole follows from norms and inner products as they come, whatever clips, unscales
    or clears the gradients later. Nothing is copied.

    Attributes:
        parameters: The tracked parameters.
        observer: Shown every micro-batch's gradient, if there is one.
        parts: Sum of the micro-batches' squared norms, by parameter.
        totals: Squared norm of their sum.
        counts: Micro-batches that reached the parameter.
        skipped: Parameters with sparse gradients, which are not read.
    """

    parameters: Sequence[Tensor]
    observer: Observer | None = None
    parts: dict[int, Tensor] = field(default_factory=dict)
    totals: dict[int, Tensor] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    skipped: set[int] = field(default_factory=set)
    _hooks: list[Any] = field(default_factory=list)

    def open(self) -> None:
        """Begin to listen."""
        for index, parameter in enumerate(self.parameters):
            if parameter.requires_grad:
                hook = partial(self._arrived, index, parameter)
                self._hooks.append(parameter.register_hook(hook))

    def close(self) -> None:
        """Stop listening; what was read stays until the next `open`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _arrived(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        if gradient.is_sparse:
            self.skipped.add(index)
            return
        gradient, before = gradient.detach(), parameter.grad
        norm = square(gradient)
        if before is None or index not in self.counts:
            self.parts[index], self.totals[index] = norm, norm
            self.counts[index] = 0
            if before is not None:  # zeros, or what somebody left in .grad
                self.totals[index] = norm + 2 * inner(before, gradient)
                self.totals[index] += square(before)
        else:
            self.parts[index] = self.parts[index] + norm
            self.totals[index] = self.totals[index] + norm + 2 * inner(before, gradient)
        if self.observer is not None:
            first = self.counts[index] == 0
            before = None if first or before is None else before.detach()
            self.observer.see(Key(index), before, gradient, self.counts[index])
        self.counts[index] += 1
