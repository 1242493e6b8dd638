"""What a step that runs out of memory leaves behind, and how it is taken back."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rightbatch.core.guards import ModelState
from rightbatch.core.random_state import random_state, set_random_state

GROW_AFTER = 100  # steps without trouble until the planned size is tried [assumed]
# Optimizers hold up to two numbers per parameter, and foreach updates one more for a
# moment [derived: Adam]. So much is kept free during the first step.
RESERVED = 3


class PassState:
    """The state that a forward or backward pass may change, as it was before a step.

    Parameters and optimizer change only in the update, which is never tried twice.
    Every buffer is copied: BatchNorm changes its own without a new version.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.device = model, device
        self._state: ModelState | None = None

    def take(self) -> None:
        """Remember."""
        self._random = random_state(self.device)
        if self._state is None:
            self._state = ModelState(self.model)
        self._state.take()

    def restore(self) -> None:
        """Put everything back; gradients are dropped."""
        assert self._state is not None
        self._state.restore()
        for parameter in self.model.parameters():
            parameter.grad = None
        set_random_state(self._random, self.device)


def release(error: BaseException | None) -> None:
    """Let go of what a failed pass still holds: frames, and the allocator's cache."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        if error.__traceback__ is not None:
            traceback.clear_frames(error.__traceback__)
            error.__traceback__ = None
        waiting += [error.__cause__, error.__context__]
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reserve(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Memory for the optimizer's state, taken before it exists.

    Held during the first forward and backward pass and let go before the update, so
    that a batch that fits now still fits when the state is there.
    """
    by_place: dict[tuple[torch.device, torch.dtype], int] = {}
    for p in parameters:
        if p.requires_grad:
            local = p.to_local() if hasattr(p, "to_local") else p  # pyrefly: ignore
            key = (local.device, local.dtype)
            by_place[key] = by_place.get(key, 0) + local.numel()
    return [
        torch.empty(RESERVED * count, device=device, dtype=dtype)
        for (device, dtype), count in by_place.items()
    ]


@dataclass
class MicroBatchSize:
    """How large a micro-batch may be: shrinks on trouble, is tried again later.

    Attributes:
        most: The one that was planned, in examples.
        now: The one in force.
        quiet: Steps since the last trouble.
    """

    most: int
    now: int
    quiet: int = 0

    def shrink(self, count: int, fits: int | None = None) -> int:
        """After trouble with ``count`` examples: one piece more, or what should fit.

        Twice in a row doubles the pieces, to arrive soon. Raises nothing: below one
        example the caller gives up.
        """
        used = min(self.now, count)
        pieces = -(-count // used)
        again = self.quiet == 0 and self.now < self.most
        smaller = min(-(-count // (2 * pieces if again else pieces + 1)), used - 1)
        if fits is not None and fits < used:
            smaller = fits
        self.now, self.quiet = max(smaller, 0), 0
        return self.now

    def calm(self) -> bool:
        """A step went well; whether the planned size is tried again with the next."""
        self.quiet += 1
        if self.now < self.most and self.quiet >= GROW_AFTER:
            self.now, self.quiet = self.most, 0
            return True
        return False
