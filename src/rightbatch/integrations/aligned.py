"""A controller for trainers that count micro-batches within an epoch."""

from __future__ import annotations

from rightbatch.core.errors import SettingError
from rightbatch.schedules.schedule import Schedule
from rightbatch.training.controller import Controller


class AlignedController(Controller):
    """Changes the batch only where the trainer begins a step, after the change too.

    Such trainers end a step where the epoch's micro-batches are a multiple of the
    accumulation. Where they are none of the new one, its first step would be cut short.
    So a change waits, or goes as far towards what is asked for as a step may begin.

    Attributes:
        seen: Micro-batches of the epoch so far on a rank; 0 where one begins.
    """

    seen: int = 0

    def _sized(self, batch: float) -> int:
        unit = self.multiple
        wanted = max(1, min(round(batch / unit), self._most // unit))
        now = self.batch_size // unit if self.seen else wanted
        # From what is asked for back to what is: the present one is always possible.
        way = range(wanted, now, 1 if wanted < now else -1)
        return unit * next((k for k in way if self.seen % k == 0), now)


def check_multiples(schedule: Schedule, unit: int) -> None:
    """Refuse batches that are not made of whole micro-batches of so many examples.

    Raises:
        SettingError: One of them is smaller, or exact and no multiple.
    """
    batches = [batch for _, batch in getattr(schedule, "stages", ())]
    batches = batches or ([] if schedule.live else [schedule.start, schedule.largest()])
    wrong = [b for b in batches if b < unit or (schedule.exact and b % unit)]
    if wrong:
        raise SettingError(
            f"a batch of {wrong[0]} cannot be made of micro-batches of {unit}",
            seen=f"{schedule}; {unit} examples in a micro-batch over all ranks",
            why="the loader's batch stays as it is: a step takes one or more of them",
            fix="a loader with a smaller batch, or a schedule of its multiples",
        )
