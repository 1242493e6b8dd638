"""How the examples of one step are split across ranks and into micro-batches."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64


class Part(NamedTuple):
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

    @property
    def size(self) -> int:
        """Examples that count."""
        return 0 if self.filler else self.stop - self.start


Parts = tuple[Part, ...]  # of one rank


def split_across_ranks(
    count: int,
    world_size: int,
    micro_batch: int | None,
    *,
    unit: int = 1,
    fences: tuple[int, ...] = (),
    tokens: Int64[np.ndarray, " examples"] | None = None,
    turn: int = 0,
) -> tuple[Parts, ...]:
    """The micro-batches of every rank: as many for each, all examples exactly once.

    Full micro-batches go to the ranks in turn, so that where they lie does not depend
    on the batch size: a new one finds what the workers have already fetched. What is
    left is split evenly.

    Args:
        count: Examples of the step, over all ranks.
        world_size: Number of ranks.
        micro_batch: Most examples of one micro-batch; None: each rank gets one.
        unit: Neighbours that stay together; a divisor of ``count``.
        fences: Where micro-batches must end.
        tokens: Of each example: runs between fences are split so that ranks have
            similar numbers of them.
        turn: Number of the step: the rank that gets one more changes with it.

    Example:
        >>> ranks = split_across_ranks(10, world_size=2, micro_batch=4)
        >>> [[(part.start, part.stop) for part in parts] for parts in ranks]
        [[(0, 4), (8, 9)], [(4, 8), (9, 10)]]
    """
    if fences:
        return _split_runs(count, world_size, micro_batch, fences, tokens)
    if world_size == 1 and micro_batch is None:
        return ((Part(0, count),),)
    units, most = count // unit, max(1, (micro_batch or count) // unit)
    row = most * world_size if micro_batch else units + 1
    full = units // row
    ranks: list[list[Part]] = [[] for _ in range(world_size)]
    for number in range(full * world_size):
        start = number * most
        ranks[number % world_size].append(Part(start * unit, (start + most) * unit))
    start, rest = full * row, units - full * row
    if rest:
        small, larger = divmod(rest, world_size)
        for number in range(world_size):
            rank, stop = (turn + number) % world_size, start + small + (number < larger)
            if stop > start:
                part = Part(start * unit, stop * unit)
            else:  # every rank must make as many backward passes
                part = Part(0, unit, filler=True)
            ranks[rank].append(part)
            start = stop
    return tuple(tuple(parts) for parts in ranks)


def uneven(ranks: tuple[Parts, ...]) -> bool:
    """Whether some rank has fewer examples than another, or fillers."""
    return len({sum(part.size for part in parts) for parts in ranks}) > 1


def _split_runs(
    count: int,
    world_size: int,
    micro_batch: int | None,
    fences: tuple[int, ...],
    tokens: Int64[np.ndarray, " examples"] | None,
) -> tuple[Parts, ...]:
    """Runs between fences; large ones halved until all ranks get as many."""
    before = np.arange(count + 1)  # tokens, or examples, before each example
    if tokens is not None:
        before = np.concatenate([[0], np.cumsum(tokens)])

    def load(run: Part) -> int:
        return int(before[run.stop] - before[run.start])

    runs = []
    for start, stop in itertools.pairwise(sorted({0, *fences, count})):
        most = micro_batch or stop - start
        runs += [Part(a, min(a + most, stop)) for a in range(start, stop, most)]
    while len(runs) % world_size:
        large = [j for j, run in enumerate(runs) if run.size > 1]
        if not large:
            break
        j = max(large, key=lambda j: load(runs[j]))
        start, stop = runs[j].start, runs[j].stop
        middle = (start + stop) // 2
        runs[j : j + 1] = [Part(start, middle), Part(middle, stop)]
    each = -(-len(runs) // world_size)
    ranks: list[list[Part]] = [[] for _ in range(world_size)]
    # The heaviest first, each to the rank that has least so far.
    loads = [0] * world_size
    for run in sorted(runs, key=load, reverse=True):
        free = (rank for rank in range(world_size) if len(ranks[rank]) < each)
        rank = min(free, key=loads.__getitem__)
        ranks[rank].append(run)
        loads[rank] += load(run)
    filler = Part(0, 1, filler=True)
    return tuple((*sorted(parts), *[filler] * (each - len(parts))) for parts in ranks)
