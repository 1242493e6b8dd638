"""One law for batch and learning rate, fitted to everything a race has trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import optimize

from rightbatch.core.estimate import Estimate
from rightbatch.fit.passages import Passages

Array = Float[np.ndarray, "..."]
DRAWS = 400  # of the parameters, behind every interval [assumed]
# Scatter of log steps about the law: expected, and worth so many runs [measured on six
# grids: .04 to .17].
SCATTER, SCATTER_RUNS = 0.15, 4.0
# Log of the exponent k of what too large a rate costs, and how far it may lie from 2.
LOG_PRICE, PRICE_SPREAD = math.log(2.0), 0.6  # [assumed]
DRIFT_SPREAD = 0.2  # of the largest rate's exponent along a run [measured: -.25 to .2]
EARLIER = 0.5  # a level e times earlier counts so much less, in scatter [assumed]
NOISE, RATE, POWER = 0, 1, 2  # places of parameters
LIMITS = np.array(
    [[-3.0, 16.0], [-9.0, 9.0], [0.05, 1.6], [-1.2, 3.0], [-0.5, 1.5], [-1.0, 1.0]]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RatePrior:
    """What is believed before a race; every belief with its width.

    Attributes:
        batch_size: Today's.
        lr: Today's learning rate.
        noise: Log of the critical batch at the race's last level.
        noise_spread: Standard deviation of that.
        growth: How the critical batch grows along a run: its exponent in time.
        growth_spread: Standard deviation of that.
        power: Exponent p of the best rate: near 1 for SGD, ½ under Adam.
        power_spread: Standard deviation of that.
        lr_spread: How far today's rate may be from the best of its batch: standard
            deviation of the log.
        lr_excess: Log of how many times too large today's rate is expected to be.
    """

    batch_size: int
    lr: float
    noise: float
    noise_spread: float
    growth: float
    growth_spread: float
    power: float
    power_spread: float
    lr_spread: float
    lr_excess: float = 0.0

    def stretch(self, batch_size: int) -> float:
        """Examples to the same result over today's, by what the noise lets expect."""
        noise = math.exp(self.noise)
        return (noise + batch_size) / (noise + self.batch_size)

    @property
    def centre(self) -> Array:
        """The parameters that are expected."""
        return np.array(
            [self.noise, self.lr_excess, self.power, LOG_PRICE, self.growth, 0.0]
        )

    @property
    def spread(self) -> Array:
        """Their standard deviations."""
        return np.array(
            [
                self.noise_spread,
                self.lr_spread,
                self.power_spread,
                PRICE_SPREAD,
                self.growth_spread,
                DRIFT_SPREAD,
            ]
        )


@dataclass(frozen=True)
class RateLaw:
    r"""Steps to a result as a law of batch and learning rate.

    $S(B, \eta) = S_{min} (1 + N/B) g(x)$ with $x = \eta (1 + N/B)^p / \eta_{max}$ and
    $g(x) = (1/x + x^k/k) / (1 + 1/k)$: a rate too small costs in proportion, one too
    large by a price that is fitted; at the best rate of every batch $g$ is 1 and the
    law is McCandlish's (2018, arXiv:1812.06162). On a quadratic $p$ is 1 for plain SGD
    and ½ where the update is divided by the batch gradient's own size [derived].

    Attributes:
        prior: What was believed before.
        parameters: log N; log x of today's setting; p; log k; and how the first two
            change along a run, per log of time: shape (6,).
        draws: The same as they may be, shape (draws, 6).
        level: Log of steps at the last level that the shape leaves; NaN before a race.
        scatter: Standard deviation of log steps about the law.
        r_squared: Of log examples at the last level; NaN where too few runs reached it.
        runs: How many reached it.
    """

    prior: RatePrior
    parameters: Array
    draws: Array
    level: float
    scatter: float
    r_squared: float
    runs: int

    @property
    def critical_batch(self) -> Estimate:
        """N, in examples, at the last level."""
        return Estimate.from_draws(
            math.exp(self.parameters[NOISE]),
            np.exp(self.draws[:, NOISE]).tolist(),
            unit="examples",
            n=self.runs,
            method=f"law of batch and rate, {self.runs} runs" if self.runs else "noise",
        )

    @property
    def power(self) -> Estimate:
        """p, the exponent of the best rate."""
        return Estimate.from_draws(
            float(self.parameters[POWER]),
            self.draws[:, POWER].tolist(),
            unit="",
            n=self.runs,
            method="law of batch and rate",
        )

    def best_lr(self, batch_size: float) -> float:
        """The learning rate that the law holds best for a batch."""
        n, x, p = self.parameters[[NOISE, RATE, POWER]]
        today = math.log1p(math.exp(n) / self.prior.batch_size)
        there = math.log1p(math.exp(n) / batch_size)
        return self.prior.lr * math.exp(p * (today - there) - x)

    def log_steps(self, batch_sizes: Array, lrs: Array) -> Array:
        """Log of steps, up to one number for all, by the fit: shape as given."""
        depth = np.zeros(len(batch_sizes))
        return log_shape(self.parameters[None], self.prior, batch_sizes, lrs, depth)[0]

    def log_steps_drawn(self, batch_sizes: Array, lrs: Array) -> Array:
        """The same by every draw: shape (draws, settings)."""
        depth = np.zeros(len(batch_sizes))
        return log_shape(self.draws, self.prior, batch_sizes, lrs, depth)


def log_shape(
    parameters: Array, prior: RatePrior, batch_sizes: Array, lrs: Array, depth: Array
) -> Array:
    """Log of ``(1 + N/B) g(x)`` for rows of parameters.

    Args:
        parameters: Shape (draws, 6).
        prior: Today's setting, from which x is counted.
        batch_sizes: Shape (settings,).
        lrs: Shape (settings,).
        depth: Log of time of each level over that of the last, 0 or below: shape
            (settings,).

    Returns:
        Shape (draws, settings).
    """
    n, x, p, k, growth, drift = (column[:, None] for column in parameters.T)
    noise = n + growth * depth
    gain = np.logaddexp(0.0, noise - np.log(batch_sizes))
    today = np.logaddexp(0.0, n - math.log(prior.batch_size))
    log_x = np.log(lrs / prior.lr) + x - p * today + p * gain - drift * depth
    log_x = np.clip(log_x, -30.0, 30.0)
    price = np.exp(k)
    too_large = np.minimum(price * log_x, 40.0) - k
    return gain + np.logaddexp(-log_x, too_large) - np.log1p(1 / price)


def fit_rate_law(passages: Passages | None, prior: RatePrior, seed: int = 0) -> RateLaw:
    """Fit the law to every passage of every level; without any, the prior itself.

    Robust least squares on log steps. Every level has a constant of its own; a lane
    that did not reach a level is a lower bound; N and the largest rate may change along
    the run in proportion to a power of time. Passages of one lane are no independent
    observations and share the weight of about one, the last levels having most of it.

    Args:
        passages: Of a race; None before it.
        prior: What is believed before.
        seed: Of the draws.

    Example:
        >>> prior = RatePrior(
        ...     batch_size=32, lr=0.1, noise=4.0, noise_spread=1.0, growth=0.0,
        ...     growth_spread=0.1, power=1.0, power_spread=0.1, lr_spread=0.05,
        ... )
        >>> round(fit_rate_law(None, prior).best_lr(64), 3)
        0.146

    References:
        McCandlish et al. 2018, arXiv:1812.06162, for (1 + N/B) and the best rate.
    """
    random = np.random.default_rng(seed)
    data = _Observed.of(passages) if passages is not None else None
    if data is None or not data.reached.any():
        draws = prior.centre + prior.spread * random.standard_normal((DRAWS, 6))
        draws = np.clip(draws, *LIMITS.T)
        scatter = SCATTER
        return RateLaw(prior, prior.centre, draws, math.nan, scatter, math.nan, 0)
    scatter = SCATTER
    for _ in range(2):
        fitted = _fit(data, prior, scatter)
        rest, share = _residuals(fitted.x, data, prior), data.share * data.reached
        squares, runs = float(share @ np.square(rest)), float(share.sum())
        freedom = max(runs - 4.0, 0.0)  # what the parameters take up
        scatter = math.sqrt(
            (squares + SCATTER_RUNS * SCATTER**2) / (freedom + SCATTER_RUNS)
        )
    parameters = fitted.x[:6]
    curvature = fitted.jac.T @ fitted.jac
    covariance = np.linalg.pinv(curvature)[:6, :6]
    drawn = random.multivariate_normal(
        parameters, covariance, DRAWS, check_valid="ignore"
    )
    draws = np.clip(drawn, *LIMITS.T)
    last = data.reached & (data.depth == 0)
    return RateLaw(
        prior=prior,
        parameters=parameters,
        draws=draws,
        level=float(fitted.x[-1]),
        scatter=scatter,
        r_squared=_r_squared(fitted.x, data, prior, last),
        runs=int(last.sum()),
    )


@dataclass(frozen=True)
class _Observed:
    """Passages as arrays, one entry each."""

    batch_sizes: Array
    lrs: Array
    level: np.ndarray
    depth: Array
    log_steps: Array
    reached: np.ndarray
    share: Array
    width: Array

    @classmethod
    def of(cls, found: Passages) -> _Observed | None:
        rows = found.passages
        if not rows or not found.levels:
            return None
        seconds = np.array(found.seconds)
        depth = np.log(seconds / seconds[-1])
        level = np.array([p.level for p in rows])
        # Earlier levels tell less of the last; all of a lane share the weight of one.
        width = 1.0 - EARLIER * depth[level]
        weight = width**-2.0
        total: dict[tuple[int, float, int], float] = {}
        keys = [(p.batch_size, p.lr, p.seed) for p in rows]
        for key, w in zip(keys, weight, strict=True):
            total[key] = total.get(key, 0.0) + float(w)
        share = np.array(
            [w / max(total[k], 1.0) for k, w in zip(keys, weight, strict=True)]
        )
        return cls(
            batch_sizes=np.array([float(p.batch_size) for p in rows]),
            lrs=np.array([p.lr for p in rows]),
            level=level,
            depth=depth[level],
            log_steps=np.log([p.steps for p in rows]),
            reached=np.array([p.reached for p in rows]),
            share=share,
            width=width,
        )


def _residuals(x: Array, data: _Observed, prior: RatePrior) -> Array:
    """Log steps observed less predicted; for bounds, only what lies above."""
    shape = log_shape(x[None, :6], prior, data.batch_sizes, data.lrs, data.depth)[0]
    rest = data.log_steps - shape - x[6:][data.level]
    return np.where(data.reached, rest, np.maximum(rest, 0.0))


def _fit(data: _Observed, prior: RatePrior, scatter: float) -> optimize.OptimizeResult:
    levels = int(data.level.max()) + 1
    shape = log_shape(
        prior.centre[None], prior, data.batch_sizes, data.lrs, data.depth
    )[0]
    rest = data.log_steps - shape
    start = [
        float(np.median(rest[at if at.any() else data.level == i]))
        for i in range(levels)
        for at in [(data.level == i) & data.reached]
    ]
    centre, spread = prior.centre, prior.spread
    weight = np.sqrt(data.share) / scatter

    def everything(x: Array) -> Array:
        return np.concatenate(
            [_residuals(x, data, prior) * weight, (x[:6] - centre) / spread]
        )

    free = np.full(levels, 60.0)
    return optimize.least_squares(
        everything,
        np.concatenate(
            [np.clip(centre, LIMITS[:, 0] + 1e-3, LIMITS[:, 1] - 1e-3), start]
        ),
        bounds=(
            np.concatenate([LIMITS[:, 0], -free]),
            np.concatenate([LIMITS[:, 1], free]),
        ),
        loss="soft_l1",
        f_scale=2.0,
        max_nfev=60,
    )


def _r_squared(x: Array, data: _Observed, prior: RatePrior, at: np.ndarray) -> float:
    if at.sum() < 4:
        return math.nan
    log_examples = (data.log_steps + np.log(data.batch_sizes))[at]
    rest = _residuals(x, data, prior)[at]
    total = float(np.square(log_examples - log_examples.mean()).sum())
    return 1 - float(np.square(rest).sum()) / max(total, 1e-12)
