"""What a step costs."""

from __future__ import annotations

from rightbatch.lab.claim import Claim
from rightbatch.lab.cost import (
    accumulation,
    best_batch,
    full_batch_memory,
    many_small_updates,
    norms_cost,
    powers_of_two,
    same_work,
    step_time_law,
    streaming_memory,
)

COST: tuple[Claim, ...] = (
    same_work.CLAIM,
    step_time_law.CLAIM,
    powers_of_two.CLAIM,
    many_small_updates.CLAIM,
    best_batch.CLAIM,
    full_batch_memory.CLAIM,
    streaming_memory.CLAIM,
    accumulation.CLAIM,
    norms_cost.CLAIM,
)
