"""What a step costs."""

from __future__ import annotations

from rightbatch.lab.claim import Claim
from rightbatch.lab.cost import (
    same_work,
    step_time_law,
)

COST: tuple[Claim, ...] = (
    same_work.CLAIM,
    step_time_law.CLAIM,
)
