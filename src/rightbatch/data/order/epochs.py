"""The endless order: one shuffled epoch after another, computed a block ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int64

from rightbatch.data.order.permutation import Permutation

BLOCK = 1 << 15  # positions, fastest [measured: benchmarks/feed.py]


class Blocks:
    """A function of positions, read mostly forward: the last block is kept.

    Args:
        function: From first and last-but-one position to its values there: an array
            or a list.
        ends: Blocks do not reach over multiples of this.
        size: Positions in a block.
    """

    def __init__(
        self,
        function: Callable[[int, int], Any],
        ends: int = 1 << 62,
        size: int = BLOCK,
    ) -> None:
        self._function, self._ends, self._size = function, ends, size
        self._start = self._stop = -1
        self._block: Any = None

    def __call__(self, start: int, stop: int) -> Any:
        """Its values from position ``start`` to before ``stop``."""
        if self._start <= start and stop <= self._stop:
            return self._block[start - self._start : stop - self._start]
        parts: list[Any] = []
        while not parts or start < stop:
            if not self._start <= start < self._stop:
                self._fill(start)
            until = min(stop, self._stop)
            parts.append(self._block[start - self._start : until - self._start])
            start = until
        if isinstance(self._block, list):
            return [value for part in parts for value in part]
        return np.concatenate(parts)

    def _fill(self, start: int) -> None:
        # Blocks begin at multiples, so that stepping back and forth fills few.
        offset = start % self._ends
        first = offset - offset % self._size
        self._start = start - offset + first
        self._stop = start - offset + min(first + self._size, self._ends)
        self._block = self._function(self._start, self._stop)


class ShuffledEpochs(Blocks):
    """The examples of all epochs, each shuffled anew, as a function of positions.

    Args:
        length: Examples in an epoch.
        seed: Chooses the orders.

    Example:
        >>> order = ShuffledEpochs(3, seed=0)
        >>> sorted(order(3, 6).tolist())  # the second epoch
        [0, 1, 2]
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        super().__init__(self._within_epoch, ends=length)

    def at(self, positions: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The examples at any positions."""
        examples = np.empty(len(positions), dtype=np.int64)
        epochs, offsets = np.divmod(positions, self.length)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            examples[here] = Permutation(self.length, self.seed, epoch)(offsets[here])
        return examples

    def _within_epoch(self, start: int, stop: int) -> Int64[np.ndarray, " n"]:
        epoch, first = divmod(start, self.length)
        offsets = np.arange(first, first + stop - start)
        return Permutation(self.length, self.seed, epoch)(offsets)
