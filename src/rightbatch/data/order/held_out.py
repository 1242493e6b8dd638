"""Training examples left aside, to compare runs by where nothing else is given."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

MOST = 512  # examples [assumed]
SHARE = 20  # one in so many [assumed]


def hold_out(
    length: int, seed: int
) -> tuple[Int64[Tensor, " kept"], Int64[Tensor, " held"]]:
    """Split the indices of a data set into those to train on and those held out.

    A twentieth is held out, 512 at most and 1 at least.
    """
    count = min(MOST, max(1, length // SHARE))
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    return order[count:], order[:count]
