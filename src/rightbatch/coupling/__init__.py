"""What happens when the examples of a batch touch each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch.coupling.info_nce import info_nce, nt_xent
    from rightbatch.coupling.siglip import siglip

__all__ = [
    "info_nce",
    "nt_xent",
    "siglip",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "coupling.info_nce": (
            "info_nce",
            "nt_xent",
        ),
        "coupling.siglip": ("siglip",),
    },
)
