"""Steps to a target as a law of the batch, fitted to whole runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

from rightbatch.core.errors import SettingError, UnidentifiedError
from rightbatch.core.estimate import Estimate

# An interval of B_crit wider than this factor end to end is no identification.
WIDEST = 30.0  # [assumed]
Array = Float[np.ndarray, "..."]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsLaw:
    r"""$S(B) = S_{min}(1 + B_{crit}/B)$ (McCandlish et al. 2018, arXiv:1812.06162).

    At ``critical_batch`` both steps and examples are twice their minimum.

    Attributes:
        min_steps: $S_{min}$, steps to the target with an endless batch.
        critical_batch: $B_{crit}$ in examples.
        r_squared: Share of the variance of log examples that the law explains. Of
            steps it would be near 1 for any data, and mean nothing.
        residual: Root mean square residual of log examples.
        n: Number of batch sizes fitted.
    """

    min_steps: Estimate
    critical_batch: Estimate
    r_squared: float
    residual: float
    n: int

    def predict(self, batch_size: float) -> float:
        """Steps to the target at a batch size."""
        return self.min_steps.value * (1 + self.critical_batch.value / batch_size)


def fit_steps(batch_sizes: Sequence[float], steps: Sequence[float]) -> StepsLaw:
    """Fit the law of steps to measured runs; refuse where they do not determine it.

    Least squares on log examples (steps times batch). Intervals are profile
    likelihoods (F statistic, 95 %); where that of the critical batch is unbounded, or
    wider than a factor 30, the answer is a refusal that says which way it failed.

    Args:
        batch_sizes: At least 3 different ones, in examples.
        steps: Steps each run took to the same target.

    Raises:
        SettingError: Lengths differ, or a value is not positive and finite.
        UnidentifiedError: Too few batch sizes, or the critical batch lies outside of
            what they can show.

    Example:
        >>> law = fit_steps([8, 16, 32, 64, 128], [1100, 600, 345, 222, 160])
        >>> round(law.critical_batch.value)
        83
    """
    b, s = np.asarray(batch_sizes, float), np.asarray(steps, float)
    if b.shape != s.shape or b.ndim != 1:
        raise SettingError(
            "batch_sizes and steps must be two lists of one length",
            seen=f"shapes {b.shape} and {s.shape}",
        )
    if not (
        np.isfinite(b).all()
        and np.isfinite(s).all()
        and (b > 0).all()
        and (s > 0).all()
    ):
        raise SettingError(
            "batch sizes and steps must be positive numbers",
            seen=f"batch_sizes={list(batch_sizes)!r:.70}, steps={list(steps)!r:.70}",
        )
    distinct = len(set(b.tolist()))
    if distinct < 3:
        raise UnidentifiedError(
            "a law of steps needs at least 3 different batch sizes",
            seen=f"{distinct}",
            why="two points fit any two parameters: nothing would be left to judge it",
            fix="run the job to its target at one more batch size",
        )
    log_examples = np.log(b * s)
    best_log = _best_critical(b, log_examples)
    residuals = _residuals(best_log, b, log_examples)
    loss = float(residuals @ residuals)
    total = log_examples - log_examples.mean()
    freedom = max(len(b) - 2, 1)
    limit = loss * (1 + float(stats.f.ppf(0.95, 1, freedom)) / freedom)
    low, high = (_profile_end(best_log, b, log_examples, limit, d) for d in (-1, 1))
    _refuse_unidentified(b, best_log, low, high)
    critical = _estimate(best_log, low, high, "examples", len(b))
    # S_min at a critical batch is the mean level left when its shape is taken out.
    # Its own interval needs the joint region of both parameters, which is wider.
    joint = loss * (1 + 2 * float(stats.f.ppf(0.95, 2, freedom)) / freedom)
    ends = [_profile_end(best_log, b, log_examples, joint, d) for d in (-1, 1)]
    reach = [x for x in (best_log, low, high, *ends) if math.isfinite(x)]
    levels = [_log_minimum(x, b, log_examples) for x in reach]
    return StepsLaw(
        min_steps=_estimate(levels[0], min(levels), max(levels), "steps", len(b)),
        critical_batch=critical,
        r_squared=1 - loss / max(float(total @ total), 1e-300),
        residual=math.sqrt(loss / len(b)),
        n=len(b),
    )


def _shape(log_critical: float, b: Array) -> Array:
    """Log of examples over their minimum, E/E_min = 1 + B/B_crit."""
    return np.log1p(b / np.exp(log_critical))


def _residuals(log_critical: float, b: Array, log_examples: Array) -> Array:
    rest = log_examples - _shape(log_critical, b)
    return rest - rest.mean()


def _log_minimum(log_critical: float, b: Array, log_examples: Array) -> float:
    """Log S_min = log(E_min / B_crit) at a given critical batch."""
    return float(np.mean(log_examples - _shape(log_critical, b))) - log_critical


def _loss(log_critical: float, b: Array, log_examples: Array) -> float:
    rest = _residuals(log_critical, b, log_examples)
    return float(rest @ rest)


def _best_critical(b: Array, log_examples: Array) -> float:
    # One parameter is left, so a grid finds the right valley and Brent its floor.
    grid = np.linspace(*_reach(b), 200)
    start = float(grid[np.argmin([_loss(x, b, log_examples) for x in grid])])
    step = float(grid[1] - grid[0])
    lowest = optimize.minimize_scalar(
        lambda x: _loss(x, b, log_examples),
        bounds=(start - step, start + step),
        method="bounded",
    )
    return float(lowest.x)


def _reach(b: Array) -> tuple[float, float]:
    """How far from the data a critical batch is looked for: 1000 x either way."""
    return math.log(b.min() / 1000), math.log(b.max() * 1000)


def _profile_end(
    best: float, b: Array, log_examples: Array, limit: float, direction: int
) -> float:
    """Where the loss rises above its limit; infinite where it never does."""
    end = _reach(b)[0 if direction < 0 else 1]
    if _loss(end, b, log_examples) <= limit or abs(end - best) < 1e-9:
        return direction * math.inf
    root: Any = optimize.brentq(lambda x: _loss(x, b, log_examples) - limit, best, end)
    return float(root)


def _refuse_unidentified(b: Array, best: float, low: float, high: float) -> None:
    top = f"{math.exp(high):.3g}" if math.isfinite(high) else "no upper bound"
    seen = (
        f"best {math.exp(best):.3g}, 95 % interval {math.exp(low):.3g} to {top} "
        f"from batches {b.min():g} to {b.max():g}"
    )
    if math.isfinite(low) and math.isfinite(high) and high - low < math.log(WIDEST):
        return
    if not math.isfinite(low) and not math.isfinite(high):
        way = "runs scatter more than the batch size changes them"
        fix = "more runs per batch size, or batch sizes further apart"
    elif not math.isfinite(high):
        way = "no upper end: runs scatter, or all batches lie below the critical"
        fix = "run the job at larger batches"
    elif not math.isfinite(low):
        way = "no lower end: runs scatter, or all batches lie above the critical"
        fix = "run the job at smaller batches"
    else:
        way = f"its interval is wider than a factor {WIDEST:g}"
        fix = "more runs per batch size, or batch sizes further apart"
    raise UnidentifiedError(
        "these runs do not determine the critical batch",
        seen=seen,
        why=way,
        fix=fix,
    )


def _estimate(log_value: float, low: float, high: float, unit: str, n: int) -> Estimate:
    value = math.exp(log_value)
    return Estimate(
        value=value,
        low=min(math.exp(low), value),
        high=max(math.exp(high), value),
        unit=unit,
        n=n,
        method="log examples, profile likelihood",
    )
