"""How far repeated times of one thing lie apart, where there are only a few of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

# Where nothing was repeated, a time is taken to be known within 10 %. [assumed]
UNKNOWN = 0.05  # standard deviation of the logarithm


def pooled_scatter(
    samples: Iterable[Sequence[float] | Float[np.ndarray, " n"]],
) -> float:
    """Standard deviation of the logarithm of one sample, from all groups together.

    ``UNKNOWN`` counts as one observation of it: all there is where nothing was
    repeated, soon forgotten where much was.

    Args:
        samples: Groups of repeated positive measurements, of one or more each.
    """
    squares, freedom = UNKNOWN**2, 1
    for group in samples:
        logs = np.log(np.asarray(group, float))
        squares += float(np.square(logs - logs.mean()).sum())
        freedom += len(logs) - 1
    return math.sqrt(squares / freedom)
