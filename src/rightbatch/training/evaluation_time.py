"""How much of a run's time its evaluations may take."""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch.core.units import show_seconds

EVALUATE_SHARE = 0.2  # of the training time [assumed]
FREE_S = 1.0  # seconds of evaluation that are given without asking [assumed]


@dataclass
class EvaluationTime:
    """Training and evaluation since this process began, by the clock.

    Attributes:
        share: Most that evaluations may take of the training time, beyond a second.
        spent_s: What they have taken.
        told: Whether it has been said that some are put off.
    """

    share: float
    spent_s: float = 0.0
    told: bool = False

    def affords_one(self, trained_s: float) -> bool:
        """Whether those so far lie within the share; the first always does."""
        return self.spent_s <= FREE_S + self.share * trained_s

    def put_off(self, trained_s: float) -> str:
        """What to tell of it, the first time; then nothing."""
        if self.told:
            return ""
        self.told = True
        return (
            f"evaluate has taken {show_seconds(self.spent_s)} beside "
            f"{show_seconds(trained_s)} of training: from now on it waits until it "
            f"takes no more than {self.share:.0%} of the training time "
            "(--evaluate-share), so a target may be seen later than it is met"
        )
