"""What a larger batch costs after equal examples: paired differences of the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from rightbatch.core.estimate import Estimate
from rightbatch.measure.measurements import Lane

LAST, POINTS = 0.75, 16  # the loss is averaged from this share of a branch on [assumed]
Streams = Sequence[Sequence[Lane]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchPenalty:
    """A batch against the run's own, after equal examples of equal streams.

    Attributes:
        batch_size: Of the branches.
        lr: The better of its learning rates.
        loss: By how much its loss is worse; negative where it is better.
    """

    batch_size: int
    lr: float
    loss: Estimate


def penalties_of(
    streams: Streams, batch_size: int, horizon: float, *, sign: float = 1.0
) -> tuple[BranchPenalty, ...]:
    """Every batch at its better rate less the run's own at its better rate.

    The loss of a branch is the mean over its last quarter, so that where in its wobble
    it happens to stop does not matter. Differences are taken stream by stream: what is
    easy or hard in one cancels. The interval is Student's.

    Args:
        streams: The same branches on each of at least 2.
        batch_size: The run's own.
        horizon: Examples of a branch.
        sign: -1 where a higher metric is better.
    """
    ends: dict[tuple[int, float], list[float]] = {}
    for lane in (lane for lanes in streams for lane in lanes):
        ends.setdefault((lane.batch_size, lane.lr), []).append(
            sign * _end(lane, horizon)
        )
    best: dict[int, tuple[int, float]] = {}
    for setting in sorted(ends, key=lambda s: float(np.mean(ends[s]))):
        best.setdefault(setting[0], setting)
    own = ends[best[batch_size]]
    return tuple(
        BranchPenalty(batch_size=b, lr=best[b][1], loss=_worse(ends[best[b]], own))
        for b in sorted(best)
    )


def largest_without_loss(penalties: Sequence[BranchPenalty], batch_size: int) -> int:
    """The largest batch that, as all from the run's own up to it, costs nothing seen.

    Merrill et al. 2025 (arXiv:2505.23971) ask for a loss within a tolerance; here it
    must not be worse by more than chance. Few streams see little: no bound.
    """
    larger = [p for p in penalties if p.batch_size > batch_size]
    worse = next((i for i, p in enumerate(larger) if p.loss.low > 0), len(larger))
    return larger[worse - 1].batch_size if worse else batch_size


def _end(lane: Lane, horizon: float) -> float:
    if lane.end != "time":
        return math.inf
    examples = np.array(lane.steps, float) * lane.batch_size
    last = np.linspace(LAST * horizon, horizon, POINTS)
    return float(np.interp(last, examples, lane.metrics).mean())


def _worse(ends: list[float], own: list[float]) -> Estimate:
    if not np.isfinite([ends, own]).all():
        return Estimate(value=math.inf, low=math.inf, high=math.inf, method="diverged")
    differences = np.subtract(ends, own)
    middle, n = float(differences.mean()), len(own)
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    reach = float(stats.t.ppf(0.975, n - 1)) * error
    ends_at = {"low": middle - reach, "high": middle + reach}
    return Estimate(value=middle, **ends_at, n=n, method="paired, Student's t")
