"""The cost of a step: its time as a law of the micro-batch."""

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
from rightbatch.measure.record import Contention, TimePoint

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
        update_s: The part of a step made once however it is accumulated.
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
        one = self.seconds(micro, draw)
        return one + (accumulation - 1) * max(one - self.update_s, 0.0)

    def predict(self, b: float) -> Estimate:
        """Step time at micro-batch ``b`` with its interval."""
        return self._estimate(lambda draw: self.seconds(b, draw), "s")

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
    points = [p for p in points if not _past_a_stair(p, points)]
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


def stair(points: Sequence[TimePoint], seed: int = 0) -> tuple[int, Estimate] | None:
    """How much longer a step takes just past a power of two than the line says.

    Kernels that work in tiles, and devices that work in waves, start another one.

    Returns:
        The batch before the step up, and the ratio of the two times with what one
        example more costs anyway taken off; None where it was not measured.
    """
    by_size = {p.micro_batch: p for p in points}
    past = [p for p in points if _past_a_stair(p, points)]
    if not past:
        return None
    after, edge = past[-1], by_size[past[-1].micro_batch - 1]
    below = by_size.get(edge.micro_batch // 2)
    slope = 0.0
    if below is not None:  # of the line, relative to the time at the edge
        rise = edge.step_time_s.value - below.step_time_s.value
        width = (edge.micro_batch - below.micro_batch) * edge.step_time_s.value
        slope = max(rise / width, 0.0)
    random = np.random.default_rng(seed)

    def middle(point: TimePoint, drawn: bool) -> float:
        rounds = np.array(point.rounds)
        return float(np.median(random.choice(rounds, len(rounds)) if drawn else rounds))

    def ratio(drawn: bool) -> float:
        return middle(after, drawn) / middle(edge, drawn) - slope

    draws = [ratio(True) for _ in range(DRAWS)]
    found = Estimate.from_draws(
        ratio(False), draws, unit="x", n=len(edge.rounds), method="bootstrap"
    )
    return edge.micro_batch, found


def _past_a_stair(point: TimePoint, points: Sequence[TimePoint]) -> bool:
    """Timed only to compare with the power of two just below."""
    edge = point.micro_batch - 1
    power = edge > 16 - 1 and edge & (edge - 1) == 0
    return power and any(p.micro_batch == edge for p in points)


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
    found = optimize.least_squares(
        lambda q: np.log(law(np.exp(q), sizes)) - log_times,
        np.log(np.clip(start, np.array(low) * 1.001, np.array(high) * 0.999)),
        bounds=(np.log(low), np.log(high)),
    )
    return np.exp(found.x)


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
