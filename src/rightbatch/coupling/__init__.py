"""What happens when the examples of a batch touch each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch.coupling.cached_step import cached_step
    from rightbatch.coupling.convert_norms import convert_norms
    from rightbatch.coupling.ghost_norm import GhostBatchNorm
    from rightbatch.coupling.info_nce import info_nce, nt_xent
    from rightbatch.coupling.leak import Leak, Leaks
    from rightbatch.coupling.leakage import leaks
    from rightbatch.coupling.rank_audit import RankAudit, audit_ranks
    from rightbatch.coupling.siglip import siglip
    from rightbatch.coupling.synchronized_norm import SyncBatchNorm

__all__ = [
    "GhostBatchNorm",
    "Leak",
    "Leaks",
    "RankAudit",
    "SyncBatchNorm",
    "audit_ranks",
    "cached_step",
    "convert_norms",
    "info_nce",
    "leaks",
    "nt_xent",
    "siglip",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "coupling.cached_step": ("cached_step",),
        "coupling.convert_norms": ("convert_norms",),
        "coupling.ghost_norm": ("GhostBatchNorm",),
        "coupling.info_nce": (
            "info_nce",
            "nt_xent",
        ),
        "coupling.leak": (
            "Leak",
            "Leaks",
        ),
        "coupling.leakage": ("leaks",),
        "coupling.rank_audit": (
            "RankAudit",
            "audit_ranks",
        ),
        "coupling.siglip": ("siglip",),
        "coupling.synchronized_norm": ("SyncBatchNorm",),
    },
)
