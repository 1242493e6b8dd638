"""Batch and learning rate."""

from __future__ import annotations

from rightbatch.lab.claim import Claim
from rightbatch.lab.rates import (
    critical_batch,
    delta_squared,
    grow_the_rate,
    instead_of_decay,
    linear_rule,
    root_rule,
    schedules_hold,
    signal_to_noise,
    warm_up_small_batch,
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
    warm_up_small_batch.CLAIM,
    signal_to_noise.CLAIM,
    critical_batch.CLAIM,
)
