"""How the examples of one step are dealt to ranks and cut into micro-batches."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True, slots=True)
class Part:
    """A run of a step's examples that is one micro-batch of one rank.

    Attributes:
        start: First example, counted within the step.
        stop: One behind the last.
        filler: Only there so that every rank has as many micro-batches: its examples
            are some other rank's too, and its share of the step is zero.
    """

    start: int
    stop: int
    filler: bool = False


def deal(
    count: int,
    world_size: int,
    micro_batch: int | None,
    *,
    unit: int = 1,
    fences: tuple[int, ...] = (),
    tokens: Int64[np.ndarray, " examples"] | None = None,
    turn: int = 0,
) -> tuple[tuple[Part, ...], ...]:
    """The micro-batches of every rank: as many for each, all examples exactly once.

    Full micro-batches are dealt in turn, so that where they lie does not depend on the
    batch size: a new one finds what the workers have already fetched. What is left is
    split evenly.

    Args:
        count: Examples of the step, over all ranks.
        world_size: Number of ranks.
        micro_batch: Most examples of one micro-batch; None: each rank gets one.
        unit: Neighbours that stay together; a divisor of ``count``.
        fences: Where micro-batches must end.
        tokens: Of each example: runs between fences are dealt so that ranks have like
            numbers of them.
        turn: Number of the step: the rank that gets one more changes with it.

    Example:
        >>> [[(p.start, p.stop) for p in rank] for rank in deal(10, 2, 4)]
        [[(0, 4), (8, 9)], [(4, 8), (9, 10)]]
    """
    if fences:
        return _dealt_runs(count, world_size, micro_batch, fences, tokens)
    groups, most = count // unit, max(1, (micro_batch or count) // unit)
    row = most * world_size if micro_batch else groups + 1
    full = groups // row
    hands: list[list[Part]] = [[] for _ in range(world_size)]
    for number in range(full * world_size):
        start = number * most
        hands[number % world_size].append(Part(start * unit, (start + most) * unit))
    start, rest = full * row, groups - full * row
    if rest:
        small, larger = divmod(rest, world_size)
        for number in range(world_size):
            rank, stop = (turn + number) % world_size, start + small + (number < larger)
            if stop > start:
                part = Part(start * unit, stop * unit)
            else:  # every rank must make as many backward passes
                part = Part(0, unit, filler=True)
            hands[rank].append(part)
            start = stop
    return tuple(tuple(hand) for hand in hands)


def _dealt_runs(
    count: int,
    world_size: int,
    micro_batch: int | None,
    fences: tuple[int, ...],
    tokens: Int64[np.ndarray, " examples"] | None,
) -> tuple[tuple[Part, ...], ...]:
    """Runs between fences; large ones halved until all ranks get as many."""
    loads = np.arange(count + 1)
    if tokens is not None:
        loads = np.concatenate([[0], np.cumsum(tokens)])

    def load(run: tuple[int, int]) -> int:
        return int(loads[run[1]] - loads[run[0]])

    edges = sorted({0, *fences, count})
    runs = []
    for start, stop in itertools.pairwise(edges):
        most = micro_batch or stop - start
        runs += [(a, min(a + most, stop)) for a in range(start, stop, most)]
    while len(runs) % world_size:
        large = [j for j, (start, stop) in enumerate(runs) if stop - start > 1]
        if not large:
            break
        j = max(large, key=lambda j: load(runs[j]))
        start, stop = runs[j]
        runs[j : j + 1] = [(start, (start + stop) // 2), ((start + stop) // 2, stop)]
    each = -(-len(runs) // world_size)
    hands: list[list[tuple[int, int]]] = [[] for _ in range(world_size)]
    # The heaviest first, each to the rank that has least so far.
    held = [0] * world_size
    for run in sorted(runs, key=load, reverse=True):
        free = (rank for rank in range(world_size) if len(hands[rank]) < each)
        rank = min(free, key=held.__getitem__)
        hands[rank].append(run)
        held[rank] += load(run)
    return tuple(
        (
            *(Part(*run) for run in sorted(hand)),
            *[Part(0, 1, filler=True)] * (each - len(hand)),
        )
        for hand in hands
    )
