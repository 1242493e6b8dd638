"""The endless stream of example indices: fixed by its seed, cut anywhere."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from rightbatch.data.order.epochs import ShuffledEpochs


class IndexStream:
    """An endless order of examples, a pure function of (seed, epoch, position).

    Each epoch visits every example once in an order of its own; a batch is the next
    cut of any size, and may reach over the end of an epoch. Two streams of the same
    seed give the same examples whatever sizes are taken from them.

    Args:
        length: Number of examples in the data set.
        seed: Seed of the order.
        position: Examples already taken since the start of epoch 0.
        only: The indices to draw from, shape (length,); default 0 to length - 1.

    Raises:
        ValueError: ``length`` is below 1 or ``position`` below 0.

    Example:
        >>> a, b = IndexStream(5, seed=1), IndexStream(5, seed=1)
        >>> whole = a.take(7)
        >>> bool((torch.cat([b.take(3), b.take(4)]) == whole).all())
        True
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        position: int = 0,
        only: Int64[Tensor, " length"] | None = None,
    ) -> None:
        if length < 1 or position < 0:
            raise ValueError(f"length {length} must be >= 1, position {position} >= 0")
        self.length, self.seed, self.position = length, seed, position
        self.only = only
        self._walk = ShuffledEpochs(length, seed)

    def take(self, count: int) -> Int64[Tensor, " count"]:
        """The next ``count`` example indices; the stream moves on by as many."""
        start, self.position = self.position, self.position + count
        taken = torch.from_numpy(self._walk(start, self.position).copy())
        return taken if self.only is None else self.only[taken]
