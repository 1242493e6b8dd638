"""Samples of signal and noise on the clock of examples, in little memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BLOCKS = 512  # merged in pairs beyond so many [assumed]


@dataclass(frozen=True, slots=True)
class Block:
    """The weighted sum of a few neighbouring samples.

    Attributes:
        first: Examples seen when the first of them was measured.
        last: Examples seen when the last one was.
        weight: Sum of their weights, which are examples measured.
        count: How many samples.
        signal: Weighted sum of |G|^2, one number for each parameter.
        noise: Weighted sum of tr Sigma.
    """

    first: float
    last: float
    weight: float
    count: int
    signal: np.ndarray
    noise: np.ndarray

    def join(self, other: Block) -> Block:
        """This block and the one after it as one."""
        return Block(
            self.first,
            other.last,
            self.weight + other.weight,
            self.count + other.count,
            self.signal + other.signal,
            self.noise + other.noise,
        )


@dataclass
class History:
    """Keeps numerators and denominators apart, weighted by examples, bounded in size.

    All blocks but the last have equally many samples, so that any window of a long run
    is resolved as well as any other.

    Attributes:
        blocks: Oldest first; at most ``BLOCKS``.
    """

    blocks: list[Block] = field(default_factory=list)

    def add(
        self, clock: float, weight: float, signal: np.ndarray, noise: np.ndarray
    ) -> None:
        """One sample: unbiased and unclipped, negative values and all."""
        block = Block(clock, clock, weight, 1, signal * weight, noise * weight)
        if self.blocks and self.blocks[-1].count < self.blocks[0].count:
            self.blocks[-1] = self.blocks[-1].join(block)
        else:
            self.blocks.append(block)
        if len(self.blocks) > BLOCKS:
            pairs = zip(self.blocks[0:-1:2], self.blocks[1::2], strict=True)
            self.blocks = [a.join(b) for a, b in pairs] + self.blocks[-1:]

    def since(self, clock: float, at_least: int = 0) -> list[Block]:
        """The blocks of samples from ``clock`` on, but no fewer than ``at_least``."""
        recent = [b for b in self.blocks if b.last >= clock]
        return recent if len(recent) >= at_least else self.blocks[-at_least:]

    def state(self) -> list[dict[str, Any]]:
        """Plain numbers, for a checkpoint."""
        return [
            dataclasses.asdict(b)
            | {"signal": b.signal.tolist(), "noise": b.noise.tolist()}
            for b in self.blocks
        ]

    @classmethod
    def from_state(cls, state: Sequence[dict[str, Any]]) -> History:
        """What `state` gave."""
        blocks = []
        for saved in state:
            sums = {n: np.asarray(saved[n], float) for n in ("signal", "noise")}
            whole: dict[str, Any] = {**saved, **sums}
            blocks.append(Block(**whole))
        return cls(blocks)
