"""What every setting takes to the last level: the law, and what was seen of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy import stats

from rightbatch.fit.passages import Passage, Passages
from rightbatch.fit.rate_law import RateLaw

Array = Float[np.ndarray, "..."]
# Scatter of log steps between runs of one setting that differ in their stream:
# expected, and worth so many runs. [measured on the corpus of benchmarks/truth]
SEED_SCATTER, SEED_RUNS = 0.10, 3.0
LEAST_MISFIT = 0.05  # of the law at one setting, in log steps [assumed]
# A run that did not reach the level beside others of its setting that did counts as
# this much slower than it was trained; where that is less than the others took, it was
# only cut short, and does not count. [assumed]
FAILED = math.log(2.0)
PRESUMED = math.log(10.0)  # cost of a setting beyond one that diverged [assumed]
OTHERS = 2.0  # runs that the share of the others' arrivals counts for [assumed]


@dataclass(frozen=True)
class Standings:
    """Log of steps of every setting to the last level of a race, with draws.

    Attributes:
        batch_sizes: Shape (settings,).
        lrs: Shape (settings,).
        draws: Log of steps as they may be, shape (draws, settings).
        runs: How often each reached the level, shape (settings,).
        failed: How often each did not, though trained as long, shape (settings,).
        lanes: How often each was trained, shape (settings,).
        seed_scatter: Standard deviation of log steps between runs of one setting.
    """

    batch_sizes: Array
    lrs: Array
    draws: Array
    runs: Int64[np.ndarray, " settings"]
    failed: Int64[np.ndarray, " settings"]
    lanes: Int64[np.ndarray, " settings"]
    seed_scatter: float


def standings_of(
    law: RateLaw,
    passages: Passages | None,
    settings: Sequence[tuple[int, float]],
    seed: int = 0,
) -> Standings:
    """Combine the law with every setting's own runs.

    At a setting that was never run, log steps are the law's, give or take its misfit.
    Where runs reached the last level, their mean counts as much as the misfit is large
    against the scatter between runs (a normal prior and normal observations). A run
    that did not reach it is a lower bound, so one cut short says nothing. Settings with
    no smaller a rate and no larger a batch than one that diverged are presumed to.

    Args:
        law: Fitted to the same passages.
        passages: Of the race so far; None before it.
        settings: Batch sizes with their learning rates.
        seed: Of the draws.
    """
    random = np.random.default_rng(seed)
    batch_sizes = np.array([float(b) for b, _ in settings])
    lrs = np.array([lr for _, lr in settings])
    level = 0.0 if math.isnan(law.level) else law.level
    mean = level + law.log_steps_drawn(batch_sizes, lrs)
    deepest = passages.deepest if passages is not None else ()
    groups = _grouped(deepest)
    scatter = _seed_scatter(groups)
    misfit = math.sqrt(max(law.scatter**2 - scatter**2, LEAST_MISFIT**2))
    draws = mean + misfit * random.standard_normal(mean.shape)
    runs, failed, lanes = (np.zeros(len(settings), dtype=np.int64) for _ in range(3))
    for column, setting in enumerate(settings):
        own = groups.get(setting, [])
        lanes[column] = len(own)
        runs[column] = sum(p.reached for p in own)
        if runs[column]:
            seen = [math.log(p.steps) for p in own if p.reached]
            bounds = [math.log(p.steps) + FAILED for p in own if not p.reached]
            typical = float(np.mean(seen))
            bounds = [bound for bound in bounds if bound > typical]
            seen, failed[column] = seen + bounds, len(bounds)
            # Some that reach it and some that do not scatter more than others' runs.
            around = max(scatter, float(np.std(seen))) if bounds else scatter
            trust = misfit**2 / (misfit**2 + around**2 / len(seen))
            centre = mean[:, column] + trust * (np.mean(seen) - mean[:, column])
            spread = math.sqrt(trust / len(seen)) * around
            draws[:, column] = centre + spread * random.standard_normal(len(mean))
        elif own:
            bound = math.log(max(p.steps for p in own))
            draws[:, column] = np.maximum(draws[:, column], bound + misfit)
    draws[:, _presumed(passages, batch_sizes, lrs) & (lanes == 0)] += PRESUMED
    return Standings(batch_sizes, lrs, draws, runs, failed, lanes, scatter)


def luck(runs: Sequence[int], failed: Sequence[int], place: int) -> float:
    """The chance that a setting arrives in less than half of its runs.

    Where others arrive in half of theirs, two of two is little to go by (a beta prior
    and binomial observations). Settings that never arrived say nothing of luck.

    Args:
        runs: How often each setting arrived.
        failed: How often each did not, though trained as long.
        place: The setting.

    Example:
        >>> luck([2, 3, 4], [0, 0, 0], 0), round(luck([2, 3, 2], [0, 3, 2], 0), 2)
        (0.0, 0.12)
    """
    others = [i for i, count in enumerate(runs) if count and i != place]
    arrived, missed = sum(runs[i] for i in others), sum(failed[i] for i in others)
    share = arrived / (arrived + missed) if others else 1.0
    alpha = OTHERS * share + runs[place]
    beta = OTHERS * (1 - share) + failed[place]
    return float(stats.beta.cdf(0.5, alpha, beta)) if beta else 0.0


def _grouped(
    passages: Sequence[Passage],
) -> dict[tuple[int, float], list[Passage]]:
    groups: dict[tuple[int, float], list[Passage]] = {}
    for passage in passages:
        groups.setdefault((passage.batch_size, passage.lr), []).append(passage)
    return groups


def _seed_scatter(groups: dict[tuple[int, float], list[Passage]]) -> float:
    squares = freedom = 0.0
    for own in groups.values():
        logs = [math.log(p.steps) for p in own if p.reached]
        if len(logs) > 1:
            squares += float(np.var(logs)) * len(logs)
            freedom += len(logs) - 1
    expected = SEED_RUNS * SEED_SCATTER**2
    return math.sqrt((squares + expected) / (freedom + SEED_RUNS))


def _presumed(
    passages: Passages | None, batch_sizes: Array, lrs: Array
) -> Bool[np.ndarray, " settings"]:
    """Settings that a diverged lane speaks against."""
    beyond = np.zeros(len(lrs), dtype=bool)
    for batch_size, lr in passages.diverged if passages is not None else ():
        beyond |= (batch_sizes <= batch_size) & (lrs >= lr * (1 - 1e-9))
    return beyond
