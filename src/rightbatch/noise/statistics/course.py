"""The noise along a whole run, evenly resolved: sums over stretches of it.

The history is kept parameter by parameter. Here a model is a few numbers, with the
variance inside every stretch, and stretches are even in examples, not in samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rightbatch.noise.statistics.moments import NoiseMoments, moments_of

PLAIN = "plain"  # the Euclidean metric, which every sample has
READINGS = 64  # along a run; noise grows over decades, not within a 64th [assumed]
LEAST_SAMPLES = 4  # behind a reading, for its variance [assumed]


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Sums over samples of signal and noise, from which means and variances follow.

    Attributes:
        count: How many samples.
        first: Sum of w (1, signal, noise), where the weight w is examples measured.
        second: Sum of the outer products of w (1, signal, noise), shape (3, 3).
    """

    count: int
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def of(cls, weight: float, signal: float, noise: float) -> Sums:
        """One sample."""
        first = weight * np.array([1.0, signal, noise])
        return cls(1, first, np.outer(first, first))

    def join(self, other: Sums) -> Sums:
        """Over the samples of both."""
        return Sums(
            self.count + other.count,
            self.first + other.first,
            self.second + other.second,
        )

    @property
    def weight(self) -> float:
        """Examples measured."""
        return float(self.first[0])

    @property
    def moments(self) -> NoiseMoments:
        """Weighted means with their covariance: as `sampled_moments` has them."""
        signal, noise = self.first[1:] / self.weight
        centred = np.array([[-signal, 1.0, 0.0], [-noise, 0.0, 1.0]]) / self.weight
        spread = centred @ self.second @ centred.T  # sum of squared weighted deviations
        np.fill_diagonal(spread, np.maximum(np.diag(spread), 0.0))  # rounding
        return moments_of(signal, noise, spread, self.count)


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Neighbouring measured steps.

    Attributes:
        steps: Updates made before the first of them and before the last.
        examples: Examples seen at the first of them and at the last.
        sums: By metric; in the optimizer's own they may be of fewer steps, or missing.
    """

    steps: tuple[int, int]
    examples: tuple[int, int]
    sums: dict[str, Sums]

    def join(self, other: Stretch) -> Stretch:
        """This one and the one after it."""
        sums = dict(self.sums)
        for name, more in other.sums.items():
            sums[name] = sums[name].join(more) if name in sums else more
        return Stretch(
            (self.steps[0], other.steps[1]),
            (self.examples[0], other.examples[1]),
            sums,
        )

    def samples(self, metric: str) -> int:
        """How many of them were measured in this metric."""
        return self.sums[metric].count if metric in self.sums else 0


@dataclass
class Course:
    """Signal and noise of the model from the beginning of a run, in bounded memory.

    Attributes:
        stretches: Oldest first; at most twice ``READINGS``.
        spacing: Examples from the beginning of one to that of the next, at least.
    """

    stretches: list[Stretch] = field(default_factory=list)
    spacing: float = 0.0

    def add(
        self,
        step: int,
        examples: int,
        weight: float,
        samples: Mapping[str, tuple[float, float]],
    ) -> None:
        """A measured step: signal and noise by metric, unbiased and unclipped."""
        sums = {name: Sums.of(weight, *sample) for name, sample in samples.items()}
        self._append(Stretch((step, step), (examples, examples), sums))
        if len(self.stretches) > 2 * READINGS:
            self.spacing = self._span / READINGS
            fine, self.stretches = self.stretches, []
            for stretch in fine:
                self._append(stretch)

    def readings(self) -> list[Stretch]:
        """At most ``READINGS``, evenly spread, each with samples enough to judge it by.

        Where a stretch has too few, it is joined with the next, so that readings are
        wider where little was measured. A metric with too few samples for two readings
        widens none.
        """
        judged = {PLAIN} | {
            name
            for name in {name for s in self.stretches for name in s.sums}
            if sum(s.samples(name) for s in self.stretches) >= 2 * LEAST_SAMPLES
        }

        def enough(stretch: Stretch) -> bool:
            return all(stretch.samples(name) >= LEAST_SAMPLES for name in judged)

        spacing, readings = self._span / (READINGS - 1), list[Stretch]()
        for stretch in self.stretches:
            near = readings and stretch.examples[0] - readings[-1].examples[0] < spacing
            if readings and (near or not enough(readings[-1])):
                readings[-1] = readings[-1].join(stretch)
            else:
                readings.append(stretch)
        if len(readings) > 1 and not enough(readings[-1]):
            last = readings.pop()
            readings[-1] = readings[-1].join(last)
        return readings

    @property
    def _span(self) -> int:
        if not self.stretches:
            return 0
        return self.stretches[-1].examples[1] - self.stretches[0].examples[0]

    def _append(self, stretch: Stretch) -> None:
        last = self.stretches[-1] if self.stretches else None
        if last and stretch.examples[0] - last.examples[0] < self.spacing:
            self.stretches[-1] = last.join(stretch)
        else:
            self.stretches.append(stretch)

    def state(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {
            "spacing": self.spacing,
            "stretches": [
                {
                    "steps": list(s.steps),
                    "examples": list(s.examples),
                    "sums": {
                        name: [x.count, x.first.tolist(), x.second.tolist()]
                        for name, x in s.sums.items()
                    },
                }
                for s in self.stretches
            ],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Course:
        """What `state` gave."""
        stretches = [
            Stretch(
                tuple(saved["steps"]),
                tuple(saved["examples"]),
                {
                    name: Sums(count, np.asarray(first), np.asarray(second))
                    for name, (count, first, second) in saved["sums"].items()
                },
            )
            for saved in state["stretches"]
        ]
        return cls(stretches, state["spacing"])
