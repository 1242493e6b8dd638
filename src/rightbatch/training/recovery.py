"""What a step that runs out of memory leaves behind, and how it is taken back."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import JobError
from rightbatch.core.torch_private import version
from rightbatch.training.random_state import random_state, set_random_state

GROW_AFTER = 100  # steps without trouble after which a larger piece is tried [assumed]
# Optimizers hold up to two numbers per parameter, and foreach updates one more for a
# moment [derived: Adam]. So much is kept free during the first step.
RESERVED = 3


class PassState:
    """The state that a forward or backward pass may change, as it was before a step.

    Parameters and optimizer change only in the update, which is never tried twice.
    Buffers of integers (masks, tables) are watched by their version until one changes,
    not copied; of floats they all are: BatchNorm changes its own without a new version.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._moving: set[str] = set()
        self._versions: dict[str, tuple[int, int]] = {}
        self._copies: dict[str, Tensor] = {}
        self._random: dict[str, Any] = {}
        self._first = True

    def take(self, device: torch.device) -> None:
        """Remember."""
        self._random = random_state(device)
        buffers = dict(self.model.named_buffers())
        for name, buffer in buffers.items():
            known = self._versions.get(name)
            if known is not None and known != (id(buffer), version(buffer)):
                self._moving.add(name)
            self._versions[name] = (id(buffer), version(buffer))
        floats = {n for n, b in buffers.items() if b.is_floating_point()}
        kept = set(buffers) if self._first else (self._moving | floats) & set(buffers)
        self._copies = {name: buffers[name].clone() for name in kept}
        self._first = False

    def restore(self, device: torch.device) -> None:
        """Put everything back.

        Raises:
            JobError: A buffer changed that never had before, so there is no copy.
        """
        for name, buffer in list(self.model.named_buffers()):
            copy = self._copies.get(name)
            if copy is not None:
                with torch.no_grad():
                    buffer.copy_(copy)
            elif self._versions.get(name) != (id(buffer), version(buffer)):
                raise JobError(
                    f"the buffer {name} cannot be set back after out of memory",
                    seen="it changed for the first time in the step that failed",
                    why="the step would be made twice with two different states",
                    fix="resume from the last checkpoint, with a smaller micro-batch",
                )
        for parameter in self.model.parameters():
            parameter.grad = None
        set_random_state(self._random, device)


def release(error: BaseException | None) -> None:
    """Let go of what a failed pass still holds: frames, and the allocator's cache."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if error.__traceback__ is not None:
            traceback.clear_frames(error.__traceback__)
            error.__traceback__ = None
        error = error.__cause__ or error.__context__
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
    """How large a micro-batch may be: shrinks on trouble, grows back later.

    Attributes:
        most: The one that was planned, in examples.
        now: The one in force.
        patience: Steps without trouble until a larger one is tried.
        quiet: Steps since the last trouble.
        tried: Whether it has just grown back.
        before: What it has shrunk from.
    """

    most: int
    now: int
    patience: int = GROW_AFTER
    quiet: int = 0
    tried: bool = False
    before: list[int] = field(default_factory=list)

    def shrink(self, count: int, fits: int | None = None) -> int:
        """After trouble with ``count`` examples: one piece more, or what should fit.

        Twice in a row doubles the pieces, to arrive soon. Raises nothing: below one
        example the caller gives up.
        """
        used = min(self.now, count)
        pieces = -(-count // used)
        again = self.quiet == 0 and bool(self.before)
        smaller = -(-count // (2 * pieces if again else pieces + 1))
        smaller = min(smaller, used - 1)
        if fits is not None and fits < used:
            smaller = fits
        if self.tried:  # growing back was too early
            self.patience *= 2
        self.before.append(used)
        self.now, self.quiet, self.tried = max(smaller, 0), 0, False
        return self.now

    def calm(self) -> bool:
        """A step went well; whether the micro-batch grows back with the next one."""
        self.quiet += 1
        if self.before and self.quiet >= self.patience:
            self.now, self.quiet, self.tried = self.before.pop(), 0, True
            return True
        if self.quiet == 1:
            self.tried = False
        return False

    def state(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "most": self.most,
            "now": self.now,
            "patience": self.patience,
            "quiet": self.quiet,
            "before": list(self.before),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`, if it was planned with the same micro-batch."""
        if state["most"] == self.most:
            self.now, self.patience = state["now"], state["patience"]
            self.quiet, self.before = state["quiet"], state["before"]
