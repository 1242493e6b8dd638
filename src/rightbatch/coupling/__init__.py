"""What happens when the examples of a batch touch each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch.coupling.convert_norms import convert_norms
    from rightbatch.coupling.ghost_norm import GhostBatchNorm
    from rightbatch.coupling.synchronized_norm import SyncBatchNorm

__all__ = [
    "GhostBatchNorm",
    "SyncBatchNorm",
    "convert_norms",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "coupling.convert_norms": ("convert_norms",),
        "coupling.ghost_norm": ("GhostBatchNorm",),
        "coupling.synchronized_norm": ("SyncBatchNorm",),
    },
)
