"""The batch at which a loss that compares examples reaches its result soonest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize

from rightbatch.core.errors import SettingError
from rightbatch.core.estimate import Estimate
from rightbatch.coupling.pairwise_noise import PairNoise

LEAST = 2  # examples that can be compared
GRID = 200  # batches, at equal ratios, between which the least is searched [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Seconds (or joules, or money) of a step: ``fixed + linear b + quadratic b^2``.

    Attributes:
        fixed: Of every step.
        linear: Of an example: the towers.
        quadratic: Of a pair: the similarities.
    """

    fixed: float
    linear: float
    quadratic: float = 0.0

    def __post_init__(self) -> None:
        parts = (self.fixed, self.linear, self.quadratic)
        if not all(0 <= c < math.inf for c in parts) or not any(parts):
            raise SettingError(
                "the parts of a step's cost must be finite and not negative, one of "
                "them positive",
                seen=f"{parts}",
                fix="StepCost.fit(batch_sizes, seconds)",
            )

    @classmethod
    def fit(cls, batch_sizes: Sequence[float], seconds: Sequence[float]) -> StepCost:
        """Least squares on relative errors, no part negative.

        Raises:
            SettingError: Fewer than three sizes, or a time that is not positive.

        Example:
            >>> cost = StepCost.fit([8, 64, 512], [1.08, 1.64, 6.12 + 2.6])
            >>> round(cost.fixed, 2), round(cost.linear, 4), round(cost.quadratic, 6)
            (1.01, 0.0092, 1.2e-05)
        """
        b, t = np.asarray(batch_sizes, float), np.asarray(seconds, float)
        if len(set(b)) < 3 or len(b) != len(t) or not (t > 0).all():
            raise SettingError(
                "a cost needs three sizes or more, each with a positive time",
                seen=f"sizes {list(batch_sizes)}, times {list(seconds)}",
                fix="times of full steps at batches of 16, 64, 256 ...",
            )
        columns = np.stack([np.ones_like(b), b, b * b], 1)
        scale = columns.max(0)
        parts, _ = optimize.nnls(columns / scale / t[:, None], np.ones_like(t))
        fixed, linear, quadratic = (parts / scale).tolist()
        return cls(fixed=fixed, linear=linear, quadratic=quadratic)

    def of(self, batch_size: float) -> float:
        """The cost of a step."""
        b = batch_size
        return self.fixed + self.linear * b + self.quadratic * b * b


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveBatch:
    """The best batch, and what it was made of.

    Attributes:
        batch_size: Of least cost to the result, in examples; its upper end may be
            ``most``, or infinite.
        noise: What it comes from.
        cost: Of a step.
        most: Examples a batch may have; infinite where nothing was said.
    """

    batch_size: Estimate
    noise: PairNoise
    cost: StepCost
    most: float

    @property
    def limited(self) -> bool:
        """Whether no batch is too large: memory, not noise, says how large."""
        return self.batch_size.value >= self.most

    def relative(self, batch_size: float) -> float:
        """Cost to the result with a batch, over that with the best one."""
        best = min(self.batch_size.value, self.most)
        # No batch is too large only where a step of any costs the same.
        least = self.cost.fixed if math.isinf(best) else self._total(best)
        return self._total(batch_size) / least

    def _total(self, batch_size: float) -> float:
        return self.cost.of(batch_size) * (1 + self.noise.at(batch_size))

    def __str__(self) -> str:
        if math.isinf(self.batch_size.value):
            return f"pairs: {self.noise}: no batch is too large, take what memory holds"
        return f"pairs: {self.noise}: the least cost at B = {self.batch_size}"


def optimal_contrastive_batch(
    noise: PairNoise, cost: StepCost, *, most: float = math.inf
) -> ContrastiveBatch:
    r"""The batch of least cost to a result, its rate tuned.

    Steps go as $1 + V_1/b + V_2/(b(b-1))$ (McCandlish et al. 2018, arXiv:1812.06162,
    with the noise of pairs), a step costs $c_0 + c_1 b + c_2 b^2$: the least value of
    the product is searched, for the values and for every draw of $V_1$ and $V_2$. Where
    noise is nearly all and $c_1^2$ little, that is about
    $\sqrt{c_0/c_2 + (c_1/c_2)(V_2/V_1)}$.

    Args:
        noise: By `pair_noise`.
        cost: Of a step; see `StepCost.fit`.
        most: Examples that a batch may have: by memory or by the data.

    Raises:
        SettingError: ``most`` is below 2.

    Example:
        >>> import numpy as np
        >>> exact = Estimate.exact
        >>> noise = PairNoise(
        ...     v1=exact(100.0), v2=exact(2000.0), signal=exact(1.0), sizes=(8, 64),
        ...     relative=(), draws=np.array([[100.0, 2000.0]]),
        ... )
        >>> best = optimal_contrastive_batch(noise, StepCost(fixed=50.0, linear=1.0))
        >>> round(best.batch_size.value), round(best.relative(16), 2)
        (96, 3.12)
    """
    if not most >= LEAST:
        raise SettingError(f"most={most} leaves nothing to compare", fix="most=4096")
    value = _best(max(noise.v1.value, 0.0), max(noise.v2.value, 0.0), cost, most)
    draws = [_best(v1, v2, cost, most) for v1, v2 in noise.draws.tolist()]
    batch_size = Estimate.from_draws(
        value, draws, unit="examples", n=noise.v1.n, method=noise.v1.method
    )
    return ContrastiveBatch(batch_size=batch_size, noise=noise, cost=cost, most=most)


def _best(v1: float, v2: float, cost: StepCost, most: float) -> float:
    """From 2 to ``most`` the batch of least cost; ``most`` where none is too large."""
    if math.isinf(v1 + v2):  # no signal is seen
        return most

    def total(b: Any) -> Any:
        return cost.of(b) * (1 + v1 / b + v2 / (b * (b - 1)))

    if math.isinf(most):
        if cost.linear == cost.quadratic == 0.0:
            return most
        most = LEAST
        while cost.of(most) < total(LEAST):  # one step costs less than all with 2
            most *= 2.0
    grid = np.geomspace(LEAST, most, GRID)
    place = int(total(grid).argmin())
    ends = grid[max(place - 1, 0)], grid[min(place + 1, GRID - 1)]
    inside = optimize.minimize_scalar(
        lambda x: total(math.exp(x)), bounds=np.log(ends), method="bounded"
    )
    return min(float(grid[place]), math.exp(inside.x), key=total)
