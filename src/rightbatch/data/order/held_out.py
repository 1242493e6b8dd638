"""Training examples left aside, to compare runs by where nothing else is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from rightbatch.data.order.draws import Shuffled
from rightbatch.data.order.epochs import ShuffledEpochs

MOST = 512  # examples [assumed]
SHARE = 20  # one in so many [assumed]


def hold_out(
    length: int, seed: int, most: int = MOST
) -> tuple[Int64[Tensor, " kept"], Int64[Tensor, " held"]]:
    """Split the indices of a data set into those to train on and those held out.

    A twentieth is held out, ``most`` at most and 1 at least.
    """
    count = min(most, max(1, length // SHARE))
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    return order[count:], order[:count]


class Without(Shuffled):
    """Shuffled passes over the examples that are not held out.

    An epoch of the stream still counts as many examples as the data set has.

    Args:
        length: Examples in the data set.
        kept: The indices to train on, shape ``(kept,)``.
    """

    name, covers = "without held-out", False

    def __init__(self, length: int, kept: Int64[Tensor, " kept"]) -> None:
        super().__init__(length)
        self.kept = kept.numpy()

    def examples(self, seed: int) -> Callable[[int, int], Any]:
        """The kept examples, pass after pass."""
        walk = ShuffledEpochs(len(self.kept), seed)

        def taken(start: int, stop: int) -> Int64[np.ndarray, " n"]:
            return self.kept[walk(start, stop)]

        return taken
