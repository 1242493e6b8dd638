"""How often to measure, so that measuring costs no more than it may."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

REMEMBERED = 31  # steps whose times are kept, of each kind [assumed]
UPFRONT = 4  # measured steps made at once, to learn what they cost [assumed]
LONGEST = 1000.0  # steps between two measured ones at most [assumed]
# Part of the share that is spent on measuring; the rest is for what no clock here sees:
# hooks that find nothing to do, caches left cold [measured: benchmarks/noise_cost.py].
AIM = 0.7
STALL = 5.0  # times the median extra time that no measuring takes [assumed]
VERIFICATION = "verification"  # the kind of a step that verifies what is seen
PLAIN_FIRST = 2  # plain steps before the first measured one [assumed]


@dataclass
class Budget:
    """Every step earns a share of its time, measured steps spend it.

    A step's time is what passes between one update and the next, so that on an
    accelerator, which runs behind, it is still the time of a step. Medians of recent
    steps are compared: one stall neither buys nor costs a measurement. Steps have a
    kind, by what is measured in them; "" for a plain one.

    Attributes:
        share: Time that measuring may take, over the time of training without.
        clock: Seconds, only differences count.
        upfront: Measured steps to begin with, every other one, before anything was
            earned; they are spent all the same.
        steps: Steps so far.
        measured: Measured ones among them.
        spent_s: What measured steps took more than plain ones.
        plain_s: Time of training without measuring.
        verification_s: What verifying took: once, and no part of the share.
    """

    share: float
    clock: Callable[[], float]
    upfront: int = UPFRONT
    steps: int = 0
    measured: int = 0
    spent_s: float = 0.0
    plain_s: float = 0.0
    verification_s: float = 0.0
    _times: dict[str, deque[float]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=REMEMBERED))
    )
    _medians: dict[str, float] = field(default_factory=dict)
    _last: float | None = None
    _measured_last: bool = False

    def affords(self, kind: str) -> bool:
        """Whether the next step may be measured in this way."""
        if math.isinf(self.share):
            return True
        if self.steps < PLAIN_FIRST:
            return False
        if self.measured < self.upfront:
            return self.steps % 2 == 0  # by turns with plain steps, to compare
        if (
            self._measured_last
        ):  # or what a plain step takes would never be learned anew
            return False
        earned_s = AIM * self.share * self.plain_s
        return self.spent_s + self._expected_extra(kind) <= earned_s

    def _extra(self, kind: str) -> float | None:
        """Median seconds a step of this kind takes more than a plain one."""
        if kind not in self._medians or "" not in self._medians:
            return None
        return max(self._medians[kind] - self._medians[""], 0.0)

    def _expected_extra(self, kind: str) -> float:
        """What a step of this kind takes more; twice another kind's, if unknown."""
        if (known := self._extra(kind)) is not None:
            return known
        others = [self._extra(other) or 0.0 for other in self._medians if other]
        return 2 * max(others, default=0.0)

    def interval(self, kind: str) -> float:
        """Steps from one measured step to the next that keep to the share."""
        plain = self._medians.get("")
        if math.isinf(self.share):
            return 1.0
        if plain is None or self.measured < self.upfront:
            return 2.0
        wanted = self._expected_extra(kind) / max(AIM * self.share * plain, 1e-12)
        return min(max(2.0, wanted), LONGEST)  # a plain one between, as in `affords`

    def step(self, kind: str) -> None:
        """A step of this kind has ended."""
        now = self.clock()
        seconds, self._last = None if self._last is None else now - self._last, now
        self.steps += 1
        self.measured += bool(kind)
        self._measured_last = bool(kind)
        if seconds is None:
            return
        if kind == VERIFICATION:
            self.verification_s += max(seconds - self._medians.get("", 0.0), 0.0)
            return
        self._times[kind].append(seconds)
        self._medians[kind] = statistics.median(self._times[kind])
        plain = self._medians.get("", seconds)
        self.plain_s += plain
        if kind:
            # What it took, not the median: some measured steps take more than others.
            # But a stall of the machine is not paid for.
            usual = self._extra(kind) or 0.0
            self.spent_s += min(max(seconds - plain, 0.0), STALL * usual)

    @property
    def cost(self) -> float | None:
        """Share of the training time that measuring has taken so far.

        None while there is no plain step to compare with.
        """
        return self.spent_s / self.plain_s if "" in self._medians else None

    @property
    def verification(self) -> float | None:
        """How many plain steps verifying has taken in all; None: not known."""
        plain = self._medians.get("")
        return self.verification_s / plain if plain else None
