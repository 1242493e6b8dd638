"""The critical batch as a law of the gradient noise along one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rightbatch.core.errors import UnidentifiedError
from rightbatch.core.estimate import Estimate
from rightbatch.measure.measurements import NoisePoint
from rightbatch.noise.statistics.moments import NoiseMoments

DRAWS = 400  # Monte-Carlo draws behind an interval [assumed]
# How far the critical batch of runs may lie from the noise scale, either way: the 95 %
# end of a log-normal error of the theory [assumed; the two built-in jobs lie within a
# factor of 1.7, see docs/how-it-decides.md, other jobs in the literature farther off].
THEORY_FACTOR = 2.5
MOST_GROWTH = 1.0  # a steeper rise was never seen over a whole run [measured]
Array = Float[np.ndarray, "..."]


@dataclass(frozen=True)
class NoiseLaw:
    """The critical batch predicted from gradient noise along a run.

    Attributes:
        critical_batch: In examples.
        draws: Monte-Carlo draws of it, shape (draws,).
        published: Whether it is of another, published job, and not measured.
    """

    critical_batch: Estimate
    draws: Array
    published: bool = False

    def relative_steps(
        self, batch_size: float, baseline: int, draw: int | None = None
    ) -> float:
        """Steps to the same result over the baseline's, by the fit or one draw."""
        critical = self.critical_batch.value if draw is None else self.draws[draw]
        return relative_steps(float(critical), batch_size, baseline)


def relative_steps(critical: float, batch_size: float, baseline: int) -> float:
    """The law of steps for a critical batch C, (1 + C/B) / (1 + C/baseline)."""
    if math.isinf(critical):
        return baseline / batch_size
    return (1 + critical / batch_size) / (1 + critical / baseline)


def critical_from_noise(
    points: Sequence[NoisePoint], batch_size: int, seed: int = 0
) -> NoiseLaw:
    r"""Average the noise scale over a run on the clock that makes it B_crit.

    Steps of batch $B$ advance a run by $1/(1 + N/B)$ of a noiseless step each
    (McCandlish et al. 2018, eq. 2.6), and $S(B) = \int (1 + N(s)/B) ds$ over those.
    So $B_{crit}$ is the mean of $N$ with these weights. In terms of signal $G_i$ and
    noise $T_i$ at points that stand for $w_i$ steps of batch $B$ each,

    $$B_{crit} = \sum_i \frac{w_i T_i}{G_i + T_i/B} \Big/
        \sum_i \frac{w_i G_i}{G_i + T_i/B}$$

    where no single ratio $T_i/G_i$ is ever formed [derived]. The interval is a Monte
    Carlo over each point's jackknife covariance, a bootstrap over the points, and
    ``THEORY_FACTOR`` for what the theory leaves out (curvature, rates not retuned).

    Args:
        points: Along one run; each stands for the steps nearest to it.
        batch_size: The batch of that run.
        seed: Seed of the draws.

    Raises:
        UnidentifiedError: Fewer than 2 points.
    """
    if len(points) < 2:
        raise UnidentifiedError(
            "gradient noise was measured at fewer than 2 points",
            seen=f"{len(points)}",
            fix="a larger --budget",
        )
    moments = [p.plain for p in points]
    weights = _steps_nearest([float(p.step) for p in points])
    pairs = [(m.grad_norm_sq, m.trace) for m in moments]
    centre = _weighted(pairs, weights, batch_size)
    random = np.random.default_rng(seed)
    sampled = []
    for _ in range(DRAWS):
        places = random.integers(len(moments), size=len(moments))
        drawn = [_draw(moments[i], random) for i in places]
        sampled.append(_weighted(drawn, weights[places], batch_size))
    spread = math.log(THEORY_FACTOR) / 1.96
    draws = np.array(sampled) * np.exp(random.normal(0.0, spread, DRAWS))
    critical = Estimate.from_draws(
        centre,
        draws.tolist(),
        unit="examples",
        n=len(moments),
        method=f"noise at {len(moments)} points of a run",
    )
    return NoiseLaw(critical, draws)


def _steps_nearest(steps: Sequence[float]) -> Array:
    """How many steps lie nearest to each of some, the ends as their inner side."""
    gaps = np.diff(np.asarray(steps, float))
    weights = (np.append(gaps[:1], gaps) + np.append(gaps, gaps[-1:])) / 2
    return weights if weights.sum() > 0 else np.ones(len(steps))


def noise_growth(points: Sequence[NoisePoint]) -> float | None:
    """How the noise scale grew along a run: the exponent of a power of time.

    The slope of log noise on log steps, over the later half of the points. None where
    fewer than three of them have a noise scale that is bounded, or all are at one time.
    """
    known = [
        (math.log(p.step), math.log(p.noise_scale.value))
        for p in points[len(points) // 2 :]
        if p.step > 0 and p.noise_scale.bounded and p.noise_scale.value > 0
    ]
    if len(known) < 3 or known[0][0] == known[-1][0]:
        return None
    times, scales = np.array(known).T
    return float(np.clip(np.polyfit(times, scales, 1)[0], 0.0, MOST_GROWTH))


def _draw(moments: NoiseMoments, random: np.random.Generator) -> tuple[float, float]:
    """Signal and noise as they may be, by their covariance."""
    covariance = [
        [moments.var_grad_norm_sq, moments.covariance],
        [moments.covariance, moments.var_trace],
    ]
    signal, noise = random.multivariate_normal(
        [moments.grad_norm_sq, moments.trace], covariance, check_valid="ignore"
    )
    return float(signal), max(float(noise), 0.1 * moments.trace)


def _weighted(
    pairs: Sequence[tuple[float, float]], weights: Array, batch_size: int
) -> float:
    """The formula above, from pairs (G, T) and the steps they stand for."""
    signal = noise = 0.0
    for (g, t), weight in zip(pairs, weights.tolist(), strict=True):
        # |g_B|^2 = G + T/B is positive; its estimate is kept so where G's is not.
        norm = max(g + t / batch_size, 0.25 * t / batch_size)
        if norm <= 0:
            continue  # every gradient is zero: neither signal nor noise
        signal += weight * g / norm
        noise += weight * t / norm
    return noise / signal if signal > 0 else math.inf
