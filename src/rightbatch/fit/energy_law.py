"""The energy of a step as a law of the micro-batch: ``e0 + e1 b``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import optimize

from rightbatch.core.errors import UnidentifiedError
from rightbatch.measure.measurements import EnergyPoint

DRAWS = 120
Array = Float[np.ndarray, "..."]


@dataclass(frozen=True)
class EnergyLaw:
    """Joules of one step, ``e0 + e1 b``.

    Attributes:
        parameters: e0 in joules, e1 in joules per example.
        draws: Of them, by bootstrap over windows; shape (draws, 2).
        meter: What counted.
    """

    parameters: Array
    draws: Array
    meter: str

    def joules(self, micro: float, pieces: int = 1, draw: int | None = None) -> float:
        """Of a step of ``micro * pieces`` examples."""
        p = self.parameters if draw is None else self.draws[draw % len(self.draws)]
        return float(pieces * (p[0] + p[1] * micro))


def fit_energy(points: Sequence[EnergyPoint], seed: int = 0) -> EnergyLaw:
    """Least squares on relative errors, both parameters not negative.

    Raises:
        UnidentifiedError: Fewer than two sizes.
    """
    if len(points) < 2:
        raise UnidentifiedError(
            "a law of energy needs at least 2 batch sizes", seen=f"{len(points)}"
        )
    sizes = np.array([p.micro_batch for p in points], float)
    random = np.random.default_rng(seed)

    def fit(joules: Array) -> Array:
        columns = np.stack([np.ones_like(sizes), sizes], 1) / joules[:, None]
        return optimize.nnls(columns, np.ones_like(sizes))[0]

    draws = [
        fit(
            np.array(
                [np.median(random.choice(p.rounds, len(p.rounds))) for p in points]
            )
        )
        for _ in range(DRAWS)
    ]
    best = fit(np.array([p.joules.value for p in points]))
    return EnergyLaw(best, np.array(draws), points[0].meter)
