"""A learning-rate scheduler that counts steps, made to count examples."""

from __future__ import annotations

from typing import Any

from rightbatch.core.errors import SettingError
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
        SettingError: It cannot be stepped, or the batch is none.

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
        whole_number(batch_size, "batch_size")
        if not callable(getattr(scheduler, "step", None)):
            raise SettingError(
                "the scheduler has no step()", seen=type(scheduler).__name__
            )
        self.scheduler, self.reference = scheduler, batch_size
        self.examples = self.made = 0

    def step(self, examples: int) -> int:
        """So many more examples have been seen.

        Returns:
            How many steps of the scheduler that made: none, one or several.
        """
        whole_number(examples, "examples")
        self.examples += examples
        due = self.examples // self.reference - self.made
        for _ in range(due):
            self.scheduler.step()
        self.made += due
        return due

    @property
    def base_lrs(self) -> list[float]:
        """The scheduler's base rates, which follow the batch."""
        return getattr(self.scheduler, "base_lrs", [])

    @base_lrs.setter
    def base_lrs(self, values: list[float]) -> None:
        self.scheduler.base_lrs = values

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
