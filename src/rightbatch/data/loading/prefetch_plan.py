"""What comes if the batch size stays: planned ahead, so that workers can fetch it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from rightbatch.data.loading.fetch import Piece
from rightbatch.data.loading.step_plan import Planner, StepPlan
from rightbatch.data.order.order import Cursor


class Guesses:
    """The steps planned ahead, and the true one where a guess was wrong.

    Knows nothing of the stream it works for: a stream that is let go stops its workers
    at once.

    Args:
        planner: Makes the plans.
    """

    def __init__(self, planner: Planner) -> None:
        self._planner, self._batch_size = planner, 1
        self.ahead: deque[StepPlan] = deque()

    def plan(self, cursor: Cursor, batch_size: int) -> StepPlan:
        """The step at ``cursor``: as guessed, or planned anew."""
        self._batch_size = batch_size
        version = self._planner.composition.version
        while self.ahead:
            guess = self.ahead[0]
            made_for = guess.before, guess.batch_size, guess.version
            if made_for == (cursor, batch_size, version):
                return guess
            if guess.before.position < cursor.position:
                self.ahead.popleft()
            else:
                self.ahead.clear()
        return self._planner.plan(cursor, batch_size)

    def onward(self, plan: StepPlan, first: int) -> Iterator[Piece]:
        """The pieces of a step from one on, and of the steps guessed behind it."""
        self.ahead.clear()
        for micro in plan.micro[first:]:
            yield micro.piece
        cursor = plan.after
        while True:
            guess = self._planner.plan(cursor, self._batch_size)
            self.ahead.append(guess)
            for micro in guess.micro:
                yield micro.piece
            cursor = guess.after
