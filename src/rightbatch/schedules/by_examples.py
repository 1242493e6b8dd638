"""A learning-rate scheduler that counts steps, made to count examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rightbatch.core.errors import SettingError
from rightbatch.core.torch_private import inner_schedulers
from rightbatch.core.whole_number import whole_number


class ByExamples:
    """Steps a torch scheduler once for so many examples, whatever the batch.

    A schedule written as "10,000 steps of 64" then ends after 640,000 examples also
    where the batch grows on the way.

    Args:
        scheduler: A scheduler of ``torch.optim.lr_scheduler``, or anything with
            ``step()``.
        batch_size: The batch that its numbers of steps were meant for.

    Raises:
        SettingError: It cannot be stepped, or not without a metric; or the batch is
            none.

    Attributes:
        around: What its steps are made within: of whatever else moves the rate with
            the batch, see `Hyperparameters`.

    Example:
        >>> import torch, rightbatch as rb
        >>> weight = torch.nn.Parameter(torch.zeros(()))
        >>> sgd = torch.optim.SGD([weight], lr=1.0)
        >>> halving = torch.optim.lr_scheduler.StepLR(sgd, step_size=10, gamma=0.5)
        >>> by_examples = rb.schedules.ByExamples(halving, batch_size=64)
        >>> sgd.step(); by_examples.step(examples=640)
        10
        >>> sgd.param_groups[0]["lr"]
        0.5
    """

    def __init__(self, scheduler: Any, *, batch_size: int) -> None:
        self.reference = whole_number(batch_size, "batch_size")
        check_steps_alone(
            scheduler,
            fix="call its step(metric) yourself after every evaluation: a factor on "
            "the rate is kept when the batch changes",
        )
        self.scheduler = scheduler
        self.examples = self.made = 0
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext

    def step(self, examples: int) -> int:
        """So many more examples have been seen.

        Returns:
            How many steps of the scheduler that made: none, one or several.
        """
        self.examples += whole_number(examples, "examples")
        due = self.examples // self.reference - self.made
        if due:
            with self.around():
                for _ in range(due):
                    self.scheduler.step()
        self.made += due
        return due

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's state and the count."""
        return {
            "examples": self.examples,
            "made": self.made,
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.examples, self.made = state["examples"], state["made"]
        self.scheduler.load_state_dict(state["scheduler"])


def check_steps_alone(scheduler: Any, fix: str) -> None:
    """Refuse what is no function of steps.

    Args:
        scheduler: What should be one.
        fix: What to do instead where it wants a metric.

    Raises:
        SettingError: It has no ``step()``, or that wants a metric.
    """
    step = getattr(scheduler, "step", None)
    if not callable(step):
        raise SettingError("the scheduler has no step()", seen=type(scheduler).__name__)
    for inner in (scheduler, *inner_schedulers(scheduler)):
        parameters = inspect.signature(inner.step).parameters.values()
        needed = [
            p.name
            for p in parameters
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if needed:
            raise SettingError(
                "the scheduler does not follow its steps alone",
                seen=f"{type(inner).__name__}.step({', '.join(needed)})",
                why="it counts evaluations, and so many examples are no evaluation",
                fix=fix,
            )
