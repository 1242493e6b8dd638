"""A schedule or a plan, followed where another library makes the steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rightbatch.core.errors import SettingError
from rightbatch.integrations.refusals import refuse
from rightbatch.job.several_optimizers import optimizer_name
from rightbatch.schedules.parse import parse_schedule
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.schedule import Aim, Constant, Schedule
from rightbatch.training.controller import Change, Controller
from rightbatch.training.plan import Plan
from rightbatch.training.requested import check_optimizer

WAITS = "no step of another batch can begin here"


class AlignedController(Controller):
    """Changes the batch only where the trainer begins a step, after the change too.

    Trainers end a step where the epoch's micro-batches are a multiple of the
    accumulation. Where they are none of the new one, its first step would be cut short.
    So a change waits, or goes as far towards what is asked for as a step may begin.

    Attributes:
        seen: Parts of the epoch, of ``multiple`` examples each, so far; 0 where any
            batch may begin.
    """

    seen: int = 0
    _asked: int = 0  # the batch that there would be if any could begin

    def __call__(self, examples: int) -> Change | None:
        """Decide about the next step, see `Controller`."""
        change = super().__call__(examples)
        if change is None or change.reason != WAITS:  # as the first rank says it
            return change
        # A live schedule looks at the noise now and then: again at the next step.
        self.changes.pop()
        self._calls, self._held = self._calls - 1, ""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, with the batches that the rate and schedulers go by."""
        return super().state_dict() | {"references": self._references()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            SettingError: Another batch was today's then.
        """
        there, here = state["references"], self._references()
        if there != here:
            raise SettingError(
                "the checkpoint is of another run",
                seen=f"batches that the rate and schedulers go by: {there} there, "
                f"{here} here",
                why="the learning rate would be another from here on",
                fix="the loader's batch, accumulation and ranks as they were",
            )
        super().load_state_dict(state)

    def _references(self) -> list[int]:
        references = [scheduler.reference for scheduler in self.numbers.schedulers]
        return [self.numbers.reference, *references]

    def _wanted(self, aim: Aim) -> tuple[int, str]:
        self._asked = 0
        wanted, reason = super()._wanted(aim)
        held = self.schedule.live and wanted == self.batch_size
        return wanted, WAITS if held and self._asked not in {0, wanted} else reason

    def _sized(self, batch: float) -> int:
        unit = self.multiple
        wanted = max(1, min(round(batch / unit), self._most // unit))
        self._asked = unit * wanted
        now = self.batch_size // unit if self.seen else wanted
        # From what is asked for back to what is: the present one is always possible.
        way = range(wanted, now, 1 if wanted < now else -1)
        return unit * next((k for k in way if self.seen % k == 0), now)


def schedule_of(given: Any, batch: int, length: int) -> Schedule:
    """A schedule as it was given: one, or a word for one.

    Raises:
        SettingError: It is neither.
    """
    if isinstance(given, str):
        return parse_schedule(given, batch=batch, length=length)
    seen, fix = f"schedule={given!r:.60}", '"constant:64", "ramp:64:512:3epochs", …'
    wrong = not isinstance(given, Schedule)
    refuse("a schedule is one of rb.schedules, or a word for it", (wrong, seen, fix))
    return given


def check_multiples(schedule: Schedule, unit: int, fix: str = "") -> None:
    """Refuse batches that are not made of whole parts of so many examples.

    Raises:
        SettingError: One of them is smaller, or exact and no multiple.
    """
    batches = [batch for _, batch in getattr(schedule, "stages", ())]
    if not batches and not schedule.live:
        batches = [schedule.start, schedule.batch_size(1 << 60), schedule.largest()]
    wrong = [b for b in batches if b < unit or (schedule.exact and b % unit)]
    if wrong:
        raise SettingError(
            f"a batch of {wrong[0]} cannot be made of {unit} examples at a time",
            seen=f"{schedule}; {unit} are the least that a step takes, over all ranks",
            why="the loader's batch stays as it is: a step takes one or more of them",
            fix=fix or "a loader with a smaller batch, or a schedule of its multiples",
        )


def check_decays(schedule: Schedule, schedulers: list[Any]) -> None:
    """Refuse a scheduler beside a schedule that has taken a decay up.

    Raises:
        SettingError: There are both.
    """
    both = schedulers and hasattr(schedule, "rate")
    seen = f"{schedule}; and {', '.join(type(s).__name__ for s in schedulers)}"
    refuse("two learning-rate decays are given", (both, seen, "one of them"))


def planned(
    plan: Plan | str | Path, today: int, optimizer: Any, *, begun: bool = False
) -> dict[str, Any]:
    """What a `Controller` takes to follow a plan.

    Args:
        plan: Or its file.
        today: The batch that the optimizer's numbers were chosen for.
        optimizer: Must be as it was tuned.
        begun: Whether its rate is that of a run under way, which is not looked at.

    Raises:
        SettingError: The plan is of another run.
    """
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    if plan.today != today:
        raise SettingError(
            "the plan is for another batch today",
            seen=f"{plan.today} there, {today} here",
            why="its learning rate follows from that batch's",
            fix="the loader's batch, accumulation and ranks as they were tuned",
        )
    if not begun:
        group, kind = optimizer.param_groups[0], optimizer_name(optimizer)
        rate = float(group.get("initial_lr", group["lr"]))
        check_optimizer(plan, {"optimizer": kind, "param group 0's lr": rate})
    return {
        "schedule": Constant(plan.batch_size),
        "rule": plan.scaling.asked,
        "noise_scale": plan.scaling.noise_scale,
        "rate": Rate.steps({0: plan.lr_factor}),
    }


@contextmanager
def kept(optimizer: Any) -> Iterator[None]:
    """An optimizer's numbers and state, as a checkpoint left them, put back."""
    groups = [dict(group) for group in optimizer.param_groups]
    state, optimizer.state = optimizer.state, defaultdict(dict)
    try:
        yield
    finally:
        optimizer.state = state
        for group, numbers in zip(optimizer.param_groups, groups, strict=True):
            group.update(numbers)
