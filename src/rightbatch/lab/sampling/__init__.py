"""What a mini-batch measures."""

from __future__ import annotations

from rightbatch.lab.claim import Claim
from rightbatch.lab.sampling import (
    disjoint_batches,
    epochs_and_iterations,
    loss_wobble,
    portfolio,
    random_walk,
    rare_class,
    three_regimes,
    unbiased,
    variance_over_b,
)

SAMPLING: tuple[Claim, ...] = (
    three_regimes.CLAIM,
    epochs_and_iterations.CLAIM,
    unbiased.CLAIM,
    variance_over_b.CLAIM,
    disjoint_batches.CLAIM,
    loss_wobble.CLAIM,
    random_walk.CLAIM,
    rare_class.CLAIM,
    portfolio.CLAIM,
)
