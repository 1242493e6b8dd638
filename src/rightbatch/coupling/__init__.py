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
    from rightbatch.coupling.ghost_norm import GhostBatchNorm
    from rightbatch.coupling.gradient_cache import cached_step
    from rightbatch.coupling.leak import Leak, Leaks
    from rightbatch.coupling.leakage import leaks
    from rightbatch.coupling.negatives import (
        effective_negatives,
        false_negative_probability,
    )
    from rightbatch.coupling.norm_conversion import NormConversion, convert_norms
    from rightbatch.coupling.pairwise_noise import PairNoise, pair_noise
    from rightbatch.coupling.rank_audit import RankAudit, RankGradient, audit_ranks
    from rightbatch.coupling.sigmoid_loss import siglip
    from rightbatch.coupling.softmax_loss import info_nce, nt_xent
    from rightbatch.coupling.synchronized_norm import SyncBatchNorm

__all__ = [
    "ContrastiveBatch",
    "GhostBatchNorm",
    "Leak",
    "Leaks",
    "NormConversion",
    "PairNoise",
    "RankAudit",
    "RankGradient",
    "StepCost",
    "SyncBatchNorm",
    "audit_ranks",
    "cached_step",
    "convert_norms",
    "effective_negatives",
    "false_negative_probability",
    "info_nce",
    "leaks",
    "nt_xent",
    "optimal_contrastive_batch",
    "pair_noise",
    "siglip",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "coupling.contrastive_batch": (
            "ContrastiveBatch",
            "StepCost",
            "optimal_contrastive_batch",
        ),
        "coupling.norm_conversion": (
            "NormConversion",
            "convert_norms",
        ),
        "coupling.ghost_norm": ("GhostBatchNorm",),
        "coupling.gradient_cache": ("cached_step",),
        "coupling.leak": (
            "Leak",
            "Leaks",
        ),
        "coupling.leakage": ("leaks",),
        "coupling.negatives": (
            "effective_negatives",
            "false_negative_probability",
        ),
        "coupling.pairwise_noise": (
            "PairNoise",
            "pair_noise",
        ),
        "coupling.rank_audit": (
            "RankAudit",
            "RankGradient",
            "audit_ranks",
        ),
        "coupling.sigmoid_loss": ("siglip",),
        "coupling.softmax_loss": (
            "info_nce",
            "nt_xent",
        ),
        "coupling.synchronized_norm": ("SyncBatchNorm",),
    },
)
