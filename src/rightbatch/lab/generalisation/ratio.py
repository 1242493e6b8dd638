"""Two results compared, split by split."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rightbatch.core.estimate import Estimate
from rightbatch.lab.samples import mean_of


def ratio(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """Geometric mean of the ratios of pairs.

    Example:
        >>> round(ratio([2.0, 8.0], [1.0, 1.0]).value)
        4
    """
    pairs = zip(above, below, strict=True)
    return mean_of([math.log(a / b) for a, b in pairs]).map(math.exp)
