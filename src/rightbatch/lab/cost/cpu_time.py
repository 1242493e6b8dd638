"""CPU seconds of steps of several sizes, taken in turns."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from rightbatch.core.estimate import Estimate
from rightbatch.measure.measurements import TimePoint
from rightbatch.training.run_state import RunState

VISIT_S = 0.02  # a short step is repeated for so long within a visit [assumed]
Seconds = list[float]  # of one step, in every round


def cpu_seconds(
    steps: Sequence[tuple[RunState, int, int]], rounds: int
) -> list[Seconds]:
    """CPU seconds of a step of each (run, batch, micro-batch), in every round.

    Those of a round are visited in random order, so that a clock that slows down slows
    all of them; the first step of a visit fills the caches and is not timed. A claim
    runs on one thread: the clock of the process says what it worked.
    """
    shuffler, order = random.Random(0), list(range(len(steps)))
    seconds: list[Seconds] = [[] for _ in steps]
    for _ in range(rounds):
        shuffler.shuffle(order)
        for i in order:
            run, batch, micro = steps[i]
            run.split(batch, micro)
            run.step()
            began, made = time.process_time(), 0
            while not made or time.process_time() < began + VISIT_S:
                run.step()
                made += 1
            seconds[i].append((time.process_time() - began) / made)
    return seconds


def ratio(over: Seconds, under: Seconds, factor: float = 1.0) -> Estimate:
    """The median of ratios, round by round, times a factor."""
    pairs = zip(over, under, strict=True)
    return Estimate.median([factor * a / b for a, b in pairs], "")


def timed(batch: int, seconds: Seconds) -> TimePoint:
    """The rounds of one batch size as the fit of step times takes them."""
    step_s, rounds = Estimate.median(seconds, "s"), tuple(seconds)
    return TimePoint(
        micro_batch=batch,
        step_time_s=step_s,
        process_time_s=step_s,
        update_time_s=0.0,
        fetch_time_s=0.0,
        rounds=rounds,
        process_rounds=rounds,
    )
