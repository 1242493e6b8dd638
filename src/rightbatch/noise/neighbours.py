"""Whether neighbouring examples of a batch are more alike than others."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

Cut = Literal["", "along", "across"]

EVERY = 8  # measured steps from one pair of cuts to the next [assumed]
LEAST = 8  # pairs before anything is said [assumed]
REMEMBERED = 64  # pairs [assumed]
NOTICED = 1.25  # times that the noise must differ [assumed]
ERRORS = 4  # standard errors that it must differ [assumed]


@dataclass
class Neighbours:
    """Compares groups of neighbours with groups taken across the batch.

    Now and then a measured step's groups are cut along the batch, and in the next one
    across it. If examples are independent both give the same noise; packed, sorted or
    repeated examples don't.

    Attributes:
        count: Measured steps so far.
        ratio: How many times the noise along the batch is that across it; None: not
            known to differ.
    """

    count: int = 0
    ratio: float | None = None
    _along: float = 0.0
    _ratios: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def next_cut(self) -> Cut:
        """How the next measured step's groups are cut; "": as is cheapest."""
        self.count += 1
        cuts: dict[int, Cut] = {EVERY - 1: "along", 0: "across"}
        return cuts.get(self.count % EVERY, "")

    def add(self, noise: float, cut: Cut) -> None:
        """The noise of one measured step."""
        if cut == "along":
            self._along = noise
        elif cut == "across" and noise > 0 and self._along > 0:
            self._ratios.append(self._along / noise)
            self.ratio, self._along = self._difference(), 0.0

    def _difference(self) -> float | None:
        if len(self._ratios) < LEAST:
            return None
        logs = [math.log(r) for r in self._ratios]
        mean = statistics.mean(logs)
        error = statistics.stdev(logs) / math.sqrt(len(logs))
        if abs(mean) < math.log(NOTICED) or abs(mean) < ERRORS * error:
            return None
        return math.exp(mean)
