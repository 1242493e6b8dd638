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
from rightbatch.measure.scatter import pooled_scatter

DRAWS = 120  # draws behind an interval of the time law
FEW_ROUNDS = 5  # below, the scatter of all sizes stands in for a bootstrap [assumed]
# A law with one parameter more must be this much better on held-out points. [assumed]
PARSIMONY = 0.8
GOOD_ENOUGH = 0.005  # relative error below which the line is kept [assumed]
# Where the points do not tell the exponent of a step's growth, it may be by this factor
# off the fitted one: the standard deviation of its logarithm. [assumed]
EXPONENT_SPREAD = 0.4
# Below the smallest size timed a step is taken to shrink as this power of its examples,
# whatever the fit: no step of fewer examples is longer (0), none costs less an example
# (1). Mean and standard deviation [measured on 154 published steps, most of them below
# the sizes fitted, by up to 60 times; benchmarks/cluster.py].
BELOW, BELOW_SPREAD = 0.6, 0.2
TOLD = 4.0  # a fixed part known within this factor is told as a number [assumed]
MOST_STALLED = 0.95  # of the time: tasks that waited more tell nothing [assumed]
BEYOND_SEEN = 2.0  # times as far as the visits lie apart [assumed]
LITTLE = 0.05  # so small a share of the smallest step is told as well [assumed]
Array = Float[np.ndarray, "..."]


def _power(p: Array, b: Array) -> Array:
    return p[0] + p[1] * (b ** p[2] if len(p) > 2 else b)


def _norm(p: Array, b: Array) -> Array:
    return (p[0] ** p[2] + (p[1] * b) ** p[2]) ** (1 / p[2])


# kind: (law, bounds of its exponent). The p-norm is Pollux's (Qiao et al. 2021,
# arXiv:2008.12260): overhead that overlaps with work. max() is never used: on CPUs it
# was the worst of all forms [measured].
KINDS: dict[str, tuple[Callable[[Array, Array], Array], tuple[float, float] | None]] = {
    "affine": (_power, None),
    "affine-power": (_power, (0.2, 1.4)),
    "p-norm": (_norm, (1.0, 6.0)),
}


_POWERS_BELOW = np.clip(
    np.random.default_rng(2).normal(BELOW, BELOW_SPREAD, DRAWS), 0.0, 1.0
)


@dataclass(frozen=True)
class TimeLaw:
    r"""Step time $t(b)$ in seconds against micro-batch, with bootstrap draws.

    Attributes:
        kind: ``"affine"`` $t_0 + t_1 b$, ``"affine-power"`` $t_0 + k b^\gamma$ or
            ``"p-norm"`` $(t_0^p + (t_1 b)^p)^{1/p}$.
        parameters: As in the formula, in that order.
        draws: Parameters of refits, shape (draws, parameters). Those of a line have an
            exponent too: how far from 1 it may be is part of what is not known.
        held_out: Root mean square relative error on left-out points, by kind.
        update_s: Seconds of the part that a step makes once, however it is accumulated.
        clock: ``"wall"``, or ``"process"`` where the machine was busy.
        smallest: Smallest micro-batch that was timed.
        largest: Largest micro-batch that was timed.
        n: Number of sizes timed.
        residual: How far the sizes timed lie off the law: root mean square of the log.
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
    residual: float = 0.0

    def seconds(self, b: float, draw: int | None = None) -> float:
        """Time of one step at micro-batch ``b``, by the fit or by one of its draws.

        Below the smallest size timed it is that one's, shrunk as `BELOW` says.
        """
        p = self.parameters if draw is None else self.draws[draw % len(self.draws)]
        timed = max(float(b), float(self.smallest))
        seconds = float(KINDS[self.kind][0](p, np.asarray(timed)))
        power = BELOW if draw is None else _POWERS_BELOW[draw % DRAWS]
        return seconds * float((b / timed) ** power)

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
    def overhead_told(self) -> bool:
        """Whether the times tell the fixed part: a number, or that it is very small."""
        overhead = self.overhead
        little = overhead.high <= LITTLE * self.seconds(self.smallest)
        return little or overhead.high <= TOLD * overhead.low

    def time_ratio(
        self,
        micro: int,
        accumulation: int,
        other_micro: int,
        other_accumulation: int,
    ) -> Estimate:
        """Time of one optimizer step over that of another, by joint draws.

        Args:
            micro: Examples at once in the step judged.
            accumulation: Micro-batches in it.
            other_micro: Examples at once in the step it is held against.
            other_accumulation: Micro-batches in that one.

        Example:
            >>> from rightbatch.fit.step_time import TimeLaw
            >>> import numpy as np
            >>> law = TimeLaw(
            ...     kind="affine",
            ...     parameters=np.array([1.0, 0.5]),
            ...     draws=np.array([[0.8, 0.5], [1.2, 0.5]]),
            ...     held_out={},
            ...     update_s=0.0,
            ...     clock="wall",
            ...     smallest=1,
            ...     largest=8,
            ...     n=4,
            ... )
            >>> print(law.time_ratio(8, 1, 4, 1))
            1.67 x (1.62 to 1.71)
        """

        def ratio(draw: int | None) -> float:
            other = self.step_seconds(other_micro, other_accumulation, draw)
            return self.step_seconds(micro, accumulation, draw) / other

        return self._estimate(ratio, "x")

    @property
    def per_example(self) -> Estimate:
        """Seconds that an example adds to the overhead: the slope t1 of a line.

        Of another form it is the mean up to the largest micro-batch timed.
        """

        def slope(draw: int | None) -> float:
            if draw is None and self.kind == "affine":
                return float(self.parameters[1])
            above = self.seconds(self.largest, draw) - self._row(draw)[0]
            return float(above / self.largest)

        return self._estimate(slope, "s")

    @property
    def half_batch(self) -> Estimate:
        """The batch at which half the step is overhead: t0 / t1 in the affine case."""
        return self._estimate(lambda d: self._half(self._row(d)), "examples")

    def _row(self, draw: int | None) -> Array:
        return self.parameters if draw is None else self.draws[draw]

    def _half(self, p: Array) -> float:
        ratio = float(p[0] / p[1])
        if self.kind == "p-norm":
            return ratio * float((2 ** p[2] - 1) ** (1 / p[2]))
        return float(ratio ** (1 / p[2])) if len(p) > 2 else ratio

    def _estimate(self, f: Callable[[int | None], float], unit: str) -> Estimate:
        return Estimate.from_draws(
            float(f(None)),
            [float(f(d)) for d in range(len(self.draws))],
            unit=unit,
            n=self.n,
            method=f"{self.kind} law, refits",
        )


def fit_time(
    points: Sequence[TimePoint], contention: Contention | None = None, seed: int = 0
) -> TimeLaw:
    """Fit step time against micro-batch; the form is chosen on held-out points.

    The interval holds what the scatter of the rounds leaves open, how far the points
    lie off the law, and, for a line or a power, how far they tell the exponent at all:
    of few sizes, not far. On a busy machine the process's CPU time is fitted instead of
    wall time, scaled to wall by the least wall-to-CPU ratio seen; and as what disturbs
    one visit may disturb all, repeating does not narrow the interval: it is as wide as
    the visits lie apart, by either clock.

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
    walls = [np.array(p.rounds) for p in points]
    rounds = [np.array(p.process_rounds) * ratio for p in points] if busy else walls
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
    logs = _drawn_logs(rounds, random)
    if contention is not None and busy:
        seen = [np.concatenate(pair) for pair in zip(rounds, walls, strict=True)]
        logs = _disturbed_logs(seen, contention.stalled or 0.0, random)
    residual = _residual(kind, best, sizes, medians)
    draws = _refits(kind, best, sizes, logs, residual, random)
    return TimeLaw(
        kind=kind,
        parameters=best,
        draws=draws,
        held_out=held_out,
        update_s=points[0].update_time_s,
        clock="process" if busy else "wall",
        smallest=int(sizes.min()),
        largest=int(sizes.max()),
        n=len(sizes),
        residual=residual,
    )


def _residual(kind: str, best: Array, sizes: Array, medians: Array) -> float:
    """Root mean square distance of the points from the law, in log seconds."""
    off = np.log(KINDS[kind][0](best, sizes) / medians)
    return math.sqrt(float(off @ off) / max(len(sizes) - len(best), 1))


def _refits(
    kind: str, best: Array, sizes: Array, logs: Array, residual: float, random: Any
) -> Array:
    """Fits to the points as they might have come out, shape (draws, parameters).

    Args:
        kind: One of `KINDS`.
        best: Its parameters by the points themselves.
        sizes: Micro-batches.
        logs: Log seconds as the clock leaves them open, shape (draws, sizes).
        residual: How far the points lie off the law.
        random: Generator of the draws.
    """
    known = logs.std(axis=0)
    missing = np.sqrt(np.maximum(residual**2 - known**2, 0.0))
    times = np.exp(logs + random.normal(0, 1, logs.shape) * missing)
    if kind == "p-norm":
        return np.array([_fit(kind, sizes, t, best) for t in times])
    start = best if len(best) > 2 else np.append(best, 1.0)
    pulls = np.log(start[2]) + random.normal(0, EXPONENT_SPREAD, DRAWS)
    weight = max(float(np.hypot(known, missing).mean()), GOOD_ENOUGH) / EXPONENT_SPREAD
    return np.array(
        [
            _fit("affine-power", sizes, t, start, (float(pull), weight))
            for t, pull in zip(times, pulls, strict=True)
        ]
    )


def _drawn_logs(rounds: list[Array], random: Any) -> Array:
    """Logarithms of medians as they might have come out, shape (draws, sizes)."""
    scatter = pooled_scatter(rounds)
    columns = []
    for r in rounds:
        if len(r) < FEW_ROUNDS:
            spread = scatter / math.sqrt(len(r))
            columns.append(np.log(np.median(r)) + random.normal(0, spread, DRAWS))
        else:
            drawn = random.choice(r, (DRAWS, len(r)))
            columns.append(np.log(np.median(drawn, axis=1)))
    return np.stack(columns, 1)


def _disturbed_logs(seen: list[Array], stalled: float, random: Any) -> Array:
    """Logarithms of times on a busy machine, shape (draws, sizes).

    In every draw all sizes are disturbed alike: each is at the same quantile of what
    either clock said of its visits, and as far again, since no visit was left alone.
    Where there are too few of them, times may be off by as much as tasks here waited.
    """
    ranks = random.uniform(size=DRAWS)
    few = max(len(times) for times in seen) < 2 * FEW_ROUNDS  # of two clocks
    unseen = -math.log1p(-min(stalled, MOST_STALLED)) if few else 0.0
    logs = np.stack([np.log(np.quantile(times, ranks)) for times in seen], 1)
    middle = np.log([np.median(times) for times in seen])
    return middle + BEYOND_SEEN * (logs - middle) + unseen * (ranks - 0.5)[:, None]


def _fit(
    kind: str,
    sizes: Array,
    times: Array,
    start: Any = None,
    pull: tuple[float, float] | None = None,
) -> Array:
    """Least squares on log time, every parameter positive.

    Args:
        kind: One of `KINDS`.
        sizes: Micro-batches.
        times: Seconds.
        start: Parameters to begin with.
        pull: Where the logarithm of the exponent is drawn to, and with what weight.
    """
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

    def residuals(q: Array) -> Array:
        off = np.log(law(np.exp(q), sizes)) - log_times
        if pull is None:
            return off
        return np.append(off, pull[1] * (q[2] - pull[0]))

    fitted = optimize.least_squares(
        residuals,
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
