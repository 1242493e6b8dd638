"""One claim about batch size a file, each with a number that it must give."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch.lab.check import Check
    from rightbatch.lab.claim import Claim, Outcome
    from rightbatch.lab.laboratory import claims, run

__all__ = ["Check", "Claim", "Outcome", "claims", "run"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "lab.check": ("Check",),
        "lab.claim": ("Claim", "Outcome"),
        "lab.laboratory": ("claims", "run"),
    },
)
