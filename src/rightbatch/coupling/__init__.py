"""What happens when the examples of a batch touch each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch.coupling.gradient_cache import cached_step
    from rightbatch.coupling.rank_audit import RankAudit, RankGradient, audit_ranks
    from rightbatch.coupling.sigmoid_loss import siglip
    from rightbatch.coupling.softmax_loss import info_nce, nt_xent

__all__ = [
    "RankAudit",
    "RankGradient",
    "audit_ranks",
    "cached_step",
    "info_nce",
    "nt_xent",
    "siglip",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "coupling.gradient_cache": ("cached_step",),
        "coupling.softmax_loss": (
            "info_nce",
            "nt_xent",
        ),
        "coupling.rank_audit": (
            "RankAudit",
            "RankGradient",
            "audit_ranks",
        ),
        "coupling.sigmoid_loss": ("siglip",),
    },
)
