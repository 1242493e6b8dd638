"""Whether numbers that are zero but for chance lie to one side of it."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field

LEAST = 8  # numbers before anything is said [assumed]
REMEMBERED = 64  # numbers [assumed]
ERRORS = 4  # standard errors that their mean must be from zero [assumed]


@dataclass
class Tendency:
    """The latest of these numbers."""

    _values: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def add(self, value: float) -> None:
        """One more."""
        self._values.append(value)

    def beyond(self, least: float) -> float:
        """Their mean, if it is more than chance and more than ``least``; else 0."""
        if len(self._values) < LEAST:
            return 0.0
        mean = statistics.mean(self._values)
        error = statistics.stdev(self._values) / math.sqrt(len(self._values))
        return mean if abs(mean) > max(ERRORS * error, least) else 0.0
