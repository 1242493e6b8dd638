"""The time of a step as a law of the micro-batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize

from rightbatch.core.errors import UnidentifiedError
from rightbatch.core.estimate import Estimate
from rightbatch.fit.stairs import past_a_stair
from rightbatch.measure.measurements import Contention, TimePoint

DRAWS = 120  # bootstrap draws behind an interval of the time law
# A law with one parameter more must be this much better on held-out points. [assumed]
PARSIMONY = 0.8
GOOD_ENOUGH = 0.005  # relative error below which the line is kept [assumed]
Array = Float[np.ndarray, "..."]


def _affine(p: Array, b: Array) -> Array:
    return p[0] + p[1] * b


def _power(p: Array, b: Array) -> Array:
    return p[0] + p[1] * b ** p[2]


def _norm(p: Array, b: Array) -> Array:
    return (p[0] ** p[2] + (p[1] * b) ** p[2]) ** (1 / p[2])


# kind: (law, bounds of its exponent). The p-norm is Pollux's (Qiao et al. 2021,
# arXiv:2008.12260): overhead that overlaps with work. max() is never used: on CPUs it
# was the worst of all forms [measured].
KINDS: dict[str, tuple[Callable[[Array, Array], Array], tuple[float, float] | None]] = {
    "affine": (_affine, None),
    "affine-power": (_power, (0.6, 1.4)),
    "p-norm": (_norm, (1.0, 6.0)),
}


@dataclass(frozen=True)
class TimeLaw:
    r"""Step time $t(b)$ in seconds against micro-batch, with bootstrap draws.

    Attributes:
        kind: ``"affine"`` $t_0 + t_1 b$, ``"affine-power"`` $t_0 + k b^\gamma$ or
            ``"p-norm"`` $(t_0^p + (t_1 b)^p)^{1/p}$.
        parameters: As in the formula, in that order.
        draws: Parameters of the bootstrap refits, shape (draws, parameters).
        held_out: Root mean square relative error on left-out points, by kind.
        update_s: Seconds of the part that a step makes once, however it is accumulated.
        clock: ``"wall"``, or ``"process"`` where the machine was busy.
        smallest: Smallest micro-batch that was timed.
        largest: Largest micro-batch that was timed.
        n: Number of sizes timed.
    """

    kind: str
    parameters: Array
    draws: Array
    held_out: dict[str, float]
    update_s: float
    clock: str
    smallest: int
    largest: int
    n: int

    def seconds(self, b: float, draw: int | None = None) -> float:
        """Time of one step at micro-batch ``b``, by the fit or by one of its draws."""
        p = self.parameters if draw is None else self.draws[draw % len(self.draws)]
        return float(KINDS[self.kind][0](p, np.asarray(float(b))))

    def step_seconds(
        self, micro: int, accumulation: int, draw: int | None = None
    ) -> float:
        """Time of one optimizer step of ``micro * accumulation`` examples."""
        whole = self.seconds(micro, draw)
        return whole + (accumulation - 1) * max(whole - self.update_s, 0.0)

    @property
    def overhead(self) -> Estimate:
        """The fixed part t0, in seconds."""
        return self._estimate(lambda d: self._row(d)[0], "s")

    @property
    def per_example(self) -> Estimate:
        """The slope t1 (in ``affine-power``, k) in seconds per example."""
        return self._estimate(lambda d: self._row(d)[1], "s")

    @property
    def half_batch(self) -> Estimate:
        """The batch at which half the step is overhead: t0 / t1 in the affine case."""
        return self._estimate(lambda d: self._half(self._row(d)), "examples")

    def _row(self, draw: int | None) -> Array:
        return self.parameters if draw is None else self.draws[draw]

    def _half(self, p: Array) -> float:
        ratio = float(p[0] / p[1])
        if self.kind == "affine-power":
            return float(ratio ** (1 / p[2]))
        if self.kind == "p-norm":
            return ratio * float((2 ** p[2] - 1) ** (1 / p[2]))
        return ratio

    def _estimate(self, f: Callable[[int | None], float], unit: str) -> Estimate:
        return Estimate.from_draws(
            float(f(None)),
            [float(f(d)) for d in range(len(self.draws))],
            unit=unit,
            n=self.n,
            method=f"{self.kind} law, bootstrap over rounds",
        )


def fit_time(
    points: Sequence[TimePoint], contention: Contention | None = None, seed: int = 0
) -> TimeLaw:
    """Fit step time against micro-batch; the form is chosen on held-out points.

    On a busy machine the process's CPU time is fitted instead of wall time, scaled to
    wall by the least wall-to-CPU ratio seen.

    Args:
        points: From `measure.time.measure_times`, three sizes or more.
        contention: Whether the machine was busy meanwhile.
        seed: Seed of the bootstrap.

    Raises:
        UnidentifiedError: Fewer than three sizes.
    """
    if len(points) < 3:
        raise UnidentifiedError(
            "a law of step time needs at least 3 batch sizes",
            seen=f"{len(points)} timed",
            fix="a larger --budget, or a data set with more examples",
        )
    points = [p for p in points if not past_a_stair(p, points)]
    busy = contention is not None and contention.busy
    ratio = min(p.step_time_s.value / max(p.process_time_s.value, 1e-9) for p in points)
    rounds = [
        np.array(p.process_rounds) * ratio if busy else np.array(p.rounds)
        for p in points
    ]
    sizes = np.array([p.micro_batch for p in points], float)
    medians = np.array([np.median(r) for r in rounds])
    held_out = {kind: _held_out_error(kind, sizes, medians) for kind in KINDS}
    kind = min(held_out, key=lambda k: held_out[k])
    if held_out["affine"] < GOOD_ENOUGH or (
        held_out[kind] > PARSIMONY * held_out["affine"]
    ):
        kind = "affine"
    best = _fit(kind, sizes, medians)
    random = np.random.default_rng(seed)
    draws = [
        _fit(
            kind,
            sizes,
            np.array([np.median(random.choice(r, len(r))) for r in rounds]),
            start=best,
        )
        for _ in range(DRAWS)
    ]
    return TimeLaw(
        kind=kind,
        parameters=best,
        draws=np.array(draws),
        held_out=held_out,
        update_s=points[0].update_time_s,
        clock="process" if busy else "wall",
        smallest=int(sizes.min()),
        largest=int(sizes.max()),
        n=len(sizes),
    )


def _fit(kind: str, sizes: Array, times: Array, start: Any = None) -> Array:
    """Least squares on log time, every parameter positive."""
    law, exponent = KINDS[kind]
    if start is None:
        slope = max(times[-1] - times[0], 1e-3 * times[-1]) / (sizes[-1] - sizes[0])
        start = np.array([max(times[0] - slope * sizes[0], 0.05 * times[0]), slope])
        if exponent is not None:
            start = np.append(start, math.sqrt(exponent[0] * exponent[1]))
    # The overhead may be as good as zero; it may not be negative.
    low, high = [times.min() * 1e-4, 1e-15], [times.max(), times.max()]
    if exponent is not None:
        low, high = [*low, exponent[0]], [*high, exponent[1]]
    log_times = np.log(times)
    fitted = optimize.least_squares(
        lambda q: np.log(law(np.exp(q), sizes)) - log_times,
        np.log(np.clip(start, np.array(low) * 1.001, np.array(high) * 0.999)),
        bounds=(np.log(low), np.log(high)),
    )
    return np.exp(fitted.x)


def _held_out_error(kind: str, sizes: Array, times: Array) -> float:
    """Leave each size out in turn; root mean square of the log error there."""
    if len(sizes) <= 4 and kind != "affine":
        return math.inf  # three parameters cannot be judged on so few points
    errors = []
    for left in range(len(sizes)):
        keep = np.arange(len(sizes)) != left
        p = _fit(kind, sizes[keep], times[keep])
        errors.append(float(np.log(KINDS[kind][0](p, sizes[left]) / times[left])))
    return float(np.sqrt(np.mean(np.square(errors))))
