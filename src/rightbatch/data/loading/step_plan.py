"""The plan of a step: which examples, on which rank, in which micro-batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from rightbatch.core.errors import SettingError
from rightbatch.data.loading.fetch import Piece
from rightbatch.data.loading.split_ranks import Part, split_across_ranks, uneven
from rightbatch.data.order.order import Cursor, Cut, Order

TAILS = ("keep", "drop", "carry", "pad")


class MicroPlan(NamedTuple):
    """One micro-batch of this rank.

    Attributes:
        part: Where it lies in the step.
        piece: Its examples: what is read.
        share: Its weight in the mean over the step, times the number of ranks.
        token_share: The same where the loss is a mean over tokens.
        weights: Importance weights of its examples, or None.
        groups: Their strata or classes, or None.
    """

    part: Part
    piece: Piece
    share: float
    token_share: float | None
    weights: Float32[np.ndarray, " examples"] | None
    groups: Int64[np.ndarray, " examples"] | None


class StepPlan(NamedTuple):
    """One optimizer step.

    Attributes:
        before: Where the stream stands before it.
        after: And behind it.
        position: Of its first example, over all epochs.
        batch_size: What was asked for.
        version: Of the order, when it was made.
        cut: Its examples, over all ranks.
        micro: The micro-batches of this rank.
        uneven: Whether some rank has fewer examples, or fillers.
    """

    before: Cursor
    after: Cursor
    position: int
    batch_size: int
    version: int
    cut: Cut
    micro: tuple[MicroPlan, ...]
    uneven: bool


@dataclass(slots=True)
class Planner:
    """Everything that decides what a step consists of; pure but for caches.

    Attributes:
        order: Which examples.
        seed: Of the order.
        tail: What becomes of an epoch's last short batch.
        rank: Of this process.
        world_size: Number of processes.
        micro_batch: Most examples in one micro-batch; None: all of the rank's.
    """

    order: Order
    seed: int
    tail: str
    rank: int
    world_size: int
    micro_batch: int | None

    def plan(self, cursor: Cursor, batch_size: int) -> StepPlan:
        """The step that begins at ``cursor``, or behind the tail that is dropped."""
        start = self.settle(cursor, batch_size)
        stop = self.stop(start)
        cut, after = self.order.cut(self.seed, start, batch_size, stop)
        if self.tail == "pad":
            cut = self._padded(cut, start, batch_size)
        ranks = split_across_ranks(
            len(cut.indices),
            self.world_size,
            self.micro_batch,
            unit=cut.unit,
            fences=cut.fences,
            tokens=cut.tokens,
            turn=start.step,
        )
        return StepPlan(
            before=cursor,
            after=self.settle(self.entering(after, start), batch_size),
            position=start.position,
            batch_size=batch_size,
            version=self.order.version,
            cut=cut,
            micro=tuple(self._micro(cut, part) for part in ranks[self.rank]),
            uneven=uneven(ranks),
        )

    def stop(self, cursor: Cursor) -> int:
        """Position that the next step must not reach over."""
        if self.tail in ("carry", "drop"):
            return 1 << 63
        length = self.order.length
        return (cursor.position // length + 1) * length

    def settle(self, cursor: Cursor, batch_size: int) -> Cursor:
        """Where the next step begins: not in a tail that is to be dropped."""
        if self.tail != "drop":
            return cursor
        length = self.order.length
        left = length - cursor.position % length
        if left >= batch_size:
            return cursor
        return self.entering(replace(cursor, position=cursor.position + left), cursor)

    def entering(self, after: Cursor, before: Cursor) -> Cursor:
        """``after``, which remembers the first step of an epoch that it enters."""
        length = self.order.length
        same = after.position // length == before.position // length
        return after if same else replace(after, first_step=after.step)

    def steps_left(self, position: int, batch_size: int) -> int:
        """Steps that begin in this epoch, from ``position`` on, at this batch."""
        left = self.order.length - position % self.order.length
        return left // batch_size if self.tail == "drop" else -(-left // batch_size)

    def _padded(self, cut: Cut, cursor: Cursor, batch_size: int) -> Cut:
        """Filled up to the whole size with the examples that the epoch began with."""
        length = self.order.length
        begin = cursor.position - cursor.position % length
        while (short := batch_size - len(cut.indices)) > 0:
            head = replace(cursor, position=begin)
            more, _ = self.order.cut(self.seed, head, short, begin + length)
            cut = cut.padded(more)
        return cut

    def _micro(self, cut: Cut, part: Part) -> MicroPlan:
        here = slice(part.start, part.stop)
        token_share = None
        if cut.tokens is not None:
            tokens = 0 if part.filler else cut.tokens[here].sum()
            token_share = self.world_size * float(tokens / cut.tokens.sum())
        return MicroPlan(
            part=part,
            piece=Piece(cut.indices[here], cut.seeds[here]),
            share=cut.factor * self.world_size * part.size / len(cut.indices),
            token_share=token_share,
            weights=None if cut.weights is None else cut.weights[here],
            groups=None if cut.groups is None else cut.groups[here],
        )


class PlannedSteps:
    """The steps planned ahead, and the true one where the batch size has changed.

    It does not know the stream: a stream that is let go stops its workers at once.

    Args:
        planner: Makes the plans.
    """

    def __init__(self, planner: Planner) -> None:
        self._planner, self._batch_size = planner, 1
        self._ahead: deque[StepPlan] = deque()

    def at(self, cursor: Cursor, batch_size: int) -> StepPlan:
        """The step at ``cursor``: as planned ahead, or planned anew."""
        self._batch_size = batch_size
        wanted = (cursor, batch_size, self._planner.order.version)
        while self._ahead:
            plan = self._ahead[0]
            if (plan.before, plan.batch_size, plan.version) == wanted:
                return plan
            if plan.before.position >= cursor.position:
                self._ahead.clear()
            else:
                self._ahead.popleft()
        return self._planner.plan(cursor, batch_size)

    def pieces(self, plan: StepPlan, first: int) -> Iterator[Piece]:
        """Those of a step from its micro-batch ``first`` on, and of all steps behind.

        Endless, and at the batch size last asked for.
        """
        self._ahead.clear()
        for micro in plan.micro[first:]:
            yield micro.piece
        while True:
            plan = self._planner.plan(plan.after, self._batch_size)
            self._ahead.append(plan)
            for micro in plan.micro:
                yield micro.piece


def check_tail(tail: str | None, order: Order) -> str:
    """The tail rule in force.

    Raises:
        SettingError: There is no such rule, or it has no effect.
    """
    if tail is None:
        return "keep" if order.covers else "carry"
    if tail not in TAILS:
        raise SettingError(
            f"tail must be one of {', '.join(TAILS)}", seen=f"tail={tail!r}"
        )
    if tail in ("drop", "pad") and order.counts != "examples":
        raise SettingError(
            f"tail={tail!r} needs a batch_size in examples",
            seen=f"it counts {order.counts}",
            why="nobody can know how many examples the next step would have had",
            fix="tail='keep' or 'carry'",
        )
    if not order.covers and tail != "carry":
        raise SettingError(
            f"tail={tail!r} has no effect with {order.name} batches",
            seen=f"order {order.name!r}",
            why="their epochs have no last short batch: every step is whole",
            fix="leave tail out",
        )
    return tail
