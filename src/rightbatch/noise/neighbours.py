"""Whether neighbouring examples of a batch are more alike than others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from rightbatch.noise.statistics.tendency import Tendency

Cut = Literal["", "along", "across"]

EVERY = 8  # measured steps from one pair of cuts to the next [assumed]
NOTICED = 1.25  # times that the noise must differ [assumed]


@dataclass
class Neighbours:
    """Compares groups of neighbours with groups taken across the batch.

    Now and then a measured step's groups are cut along the batch, and in the next one
    across it. If examples are independent both give the same noise; packed, sorted or
    repeated examples don't.

    Attributes:
        count: Measured steps so far.
    """

    count: int = 0
    _along: float = 0.0
    _log_ratios: Tendency = field(default_factory=Tendency)

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
            self._log_ratios.add(math.log(self._along / noise))
            self._along = 0.0

    @property
    def ratio(self) -> float:
        """How many times the noise along the batch is that across it.

        1 where it is not known to differ.
        """
        return math.exp(self._log_ratios.beyond(math.log(NOTICED)))
