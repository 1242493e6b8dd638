"""Batch and learning rate."""

from __future__ import annotations

from rightbatch.lab.claim import Claim
from rightbatch.lab.rates import (
    delta_squared,
    grow_the_rate,
    instead_of_decay,
    linear_rule,
    root_rule,
    schedules_hold,
    which_rule,
)

RATES: tuple[Claim, ...] = (
    root_rule.CLAIM,
    linear_rule.CLAIM,
    which_rule.CLAIM,
    grow_the_rate.CLAIM,
    schedules_hold.CLAIM,
    delta_squared.CLAIM,
    instead_of_decay.CLAIM,
)
