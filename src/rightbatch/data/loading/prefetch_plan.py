"""What comes next if the batch size stays: planned ahead, for workers to read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from rightbatch.data.loading.fetch import Piece
from rightbatch.data.loading.step_plan import Planner, StepPlan
from rightbatch.data.order.order import Cursor


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
