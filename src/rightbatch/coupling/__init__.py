"""What happens when the examples of a batch touch each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch.coupling.contrastive_batch import (
        ContrastiveBatch,
        StepCost,
        optimal_contrastive_batch,
    )
    from rightbatch.coupling.negatives import (
        effective_negatives,
        false_negative_probability,
    )
    from rightbatch.coupling.pairwise_noise import PairNoise, pair_noise

__all__ = [
    "ContrastiveBatch",
    "PairNoise",
    "StepCost",
    "effective_negatives",
    "false_negative_probability",
    "optimal_contrastive_batch",
    "pair_noise",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "coupling.contrastive_batch": (
            "ContrastiveBatch",
            "StepCost",
            "optimal_contrastive_batch",
        ),
        "coupling.negatives": (
            "effective_negatives",
            "false_negative_probability",
        ),
        "coupling.pairwise_noise": (
            "PairNoise",
            "pair_noise",
        ),
    },
)
