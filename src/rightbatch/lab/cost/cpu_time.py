"""CPU seconds of several pieces of work, taken in turns on one thread."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from rightbatch.core.estimate import Estimate
from rightbatch.measure.measurements import TimePoint
from rightbatch.training.run_state import RunState

VISIT_S = 0.02  # a short piece is repeated for so long within a visit [assumed]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: what a process's CPU clock says is then what it worked."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def cpu_seconds(
    pieces: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """CPU seconds of each piece in every round, by name.

    The pieces of a round are visited in random order, so that a clock that slows down
    slows all of them; the first call of a visit fills the caches and is not timed.
    """
    shuffler, order = random.Random(0), list(pieces)
    seconds: dict[str, list[float]] = {name: [] for name in pieces}
    with one_thread():
        for _ in range(rounds):
            shuffler.shuffle(order)
            for name in order:
                pieces[name]()
                began, calls = time.process_time(), 0
                while not calls or time.process_time() < began + VISIT_S:
                    pieces[name]()
                    calls += 1
                seconds[name].append((time.process_time() - began) / calls)
    return seconds


def ratio(over: list[float], under: list[float], factor: float = 1.0) -> Estimate:
    """The median of ratios, round by round, times a factor."""
    pairs = zip(over, under, strict=True)
    return Estimate.median([factor * a / b for a, b in pairs], "")


def step_of(run: RunState, batch: int, micro: int | None = None) -> Callable[[], None]:
    """A step of the run at a batch size, to be called many times."""

    def step() -> None:
        run.split(batch, micro)
        run.step()

    return step


def timed(batch: int, seconds: list[float]) -> TimePoint:
    """The rounds of one batch size as the fit of step times takes them."""
    step_s = Estimate.median(seconds, "s")
    return TimePoint(
        micro_batch=batch,
        step_time_s=step_s,
        process_time_s=step_s,
        update_time_s=0.0,
        fetch_time_s=0.0,
        rounds=tuple(seconds),
        process_rounds=tuple(seconds),
    )
