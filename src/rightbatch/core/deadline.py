"""A moment by which work should be done, and what still fits before it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """So many seconds from when it was made; work is judged before it is begun.

    Attributes:
        budget_s: Seconds from the beginning to the end.
        began: When it was made, by `time.monotonic`.

    Example:
        >>> deadline = Deadline.within(60.0)
        >>> deadline.allows(10.0), deadline.allows(90.0)
        (True, False)
    """

    budget_s: float
    began: float

    @classmethod
    def within(cls, seconds: float = math.inf) -> Deadline:
        """The deadline so many seconds from now; by default none."""
        return cls(seconds, time.monotonic())

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self.began

    @property
    def left_s(self) -> float:
        """Seconds until it; negative once it has passed."""
        return self.budget_s - self.elapsed_s

    def allows(self, seconds: float) -> bool:
        """Whether work that is predicted to take so long would end in time."""
        return seconds <= self.left_s
