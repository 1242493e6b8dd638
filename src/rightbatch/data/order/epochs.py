"""The endless order of epochs, computed a block ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int64

from rightbatch.data.order.permutation import Permutation


class Blocks:
    """A function of positions, read mostly forward: the block around is kept.

    Args:
        function: From first and last-but-one position to its values there: an array
            or a list.
        ends: Blocks do not reach over multiples of this.
    """

    SIZE = 1 << 15  # fastest [measured: benchmarks/feed.py]

    def __init__(
        self, function: Callable[[int, int], Any], ends: int = 1 << 62
    ) -> None:
        self._function, self._ends = function, ends
        self._start, self._stop, self._block = 0, 0, function(0, 0)

    def __call__(self, start: int, stop: int) -> Any:
        """Its values from position ``start`` to before ``stop``."""
        if self._start <= start and stop <= self._stop:
            return self._block[start - self._start : stop - self._start]
        parts = []
        while start < stop:
            if not self._start <= start < self._stop:
                self._fill(start)
            until = min(stop, self._stop)
            parts.append(self._block[start - self._start : until - self._start])
            start = until
        if isinstance(self._block, list):
            return [value for part in parts for value in part]
        return np.concatenate(parts) if parts else self._block[:0]

    def _fill(self, start: int) -> None:
        # Blocks begin at multiples, so that stepping back and forth fills few.
        round_, offset = divmod(start, self._ends)
        first = offset - offset % self.SIZE
        stop = min(first + self.SIZE, self._ends)
        begin = round_ * self._ends
        self._start, self._stop = begin + first, begin + stop
        self._block = self._function(self._start, self._stop)


class Walk:
    """An endless order of epochs.

    Args:
        length: Examples in an epoch.
        seed: Chooses the orders.

    Example:
        >>> walk = Walk(3, seed=0)
        >>> sorted(walk(3, 6).tolist())  # the second epoch
        [0, 1, 2]
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self._blocks = Blocks(self._order, ends=length)

    def __call__(self, start: int, stop: int) -> Int64[np.ndarray, " n"]:
        """Examples from position ``start`` to before ``stop``, over all epochs."""
        return self._blocks(start, stop)

    def _order(self, start: int, stop: int) -> Int64[np.ndarray, " n"]:
        epoch, first = divmod(start, self.length)
        positions = np.arange(first, first + stop - start)
        return Permutation(self.length, self.seed, epoch)(positions)
