"""Many chains of stochastic gradient descent at once, on a landscape of one weight."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rightbatch.schedules.schedule import Anneal, Schedule

Array = NDArray[np.float64]
Noise = Callable[[Array], Array]
Rng = np.random.Generator
Fixed = int | np.ndarray
Batches = int | Array | Iterable[int | Array]

LOOK_UP = 50  # steps: chains, and schedules, move little within so many


def walk(
    start: Array, slope: Noise, lr: float, noise: Noise, momentum: float = 0.0
) -> Iterator[Array]:
    """Where the chains are after every step, for ever; the same array every time.

    Args:
        start: Of each chain, any shape.
        slope: The gradient of the loss.
        lr: Learning rate.
        noise: What a mini-batch adds to the gradient there.
        momentum: Heavy-ball, as torch's SGD has it.
    """
    at = np.array(start, dtype=float)
    velocity = np.zeros_like(at)
    while True:
        velocity *= momentum
        velocity += slope(at)
        velocity += noise(at)
        at -= lr * velocity
        yield at


def batch_noise(
    rng: Rng, variance: float | Callable[[Array], Array], batches: Batches
) -> Noise:
    """The error of mean gradients over batches drawn with replacement.

    Args:
        rng: Of all draws.
        variance: Of one example's gradient; a function of the place, if it changes.
        batches: Of all steps, or of each; an array broadcasts against the chains.
    """
    sizes = itertools.repeat(batches) if isinstance(batches, Fixed) else iter(batches)

    def noise(at: Array) -> Array:
        here = variance(at) if callable(variance) else variance
        error = rng.standard_normal(at.shape)
        error *= np.sqrt(here / next(sizes))
        return error

    return noise


def batches_of(schedule: Schedule, steps: int) -> list[int]:
    """The batch of each of so many steps, as the schedule counts examples."""
    batches: list[int] = []
    examples = 0
    while len(batches) < steps:
        batch = schedule.batch_size(examples)
        held = 1 + min(len(batches) // 20, LOOK_UP)
        batches += [batch] * held
        examples += held * batch
    return batches[:steps]


def looked_at(chains: Iterator[Array], looks: Sequence[int]) -> Array:
    """Where they are after so many steps each, in order: (looks, ...)."""
    wanted = set(looks)
    walked = enumerate(itertools.islice(chains, max(looks)), 1)
    return np.array([at.copy() for step, at in walked if step in wanted])


def after(chains: Iterator[Array], steps: int) -> Array:
    """Where they are so many steps later."""
    return next(itertools.islice(chains, steps - 1, None)).copy()


def geometric(first: int, last: int, steps: int) -> Anneal:
    """From one batch to another within so many steps, not examples."""
    ratio = last / first
    return Anneal(first, last, round(steps * first * math.log(ratio) / (1 - 1 / ratio)))


def passages(
    chains: Iterator[Array], start: float, goal: float, steps: int
) -> list[float]:
    """How often each chain comes to or left of a goal, put back to the start each time.

    Steps over passages is the mean passage time, without waiting for the last chain.
    """
    counts = np.zeros(1)
    for at in itertools.islice(chains, steps):
        there = at <= goal
        at[there] = start
        counts = counts + there
    return counts.tolist()
