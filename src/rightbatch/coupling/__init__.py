"""What happens when the examples of a batch touch each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch.coupling.leak import Leak, Leaks
    from rightbatch.coupling.leakage import leaks

__all__ = [
    "Leak",
    "Leaks",
    "leaks",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "coupling.leak": (
            "Leak",
            "Leaks",
        ),
        "coupling.leakage": ("leaks",),
    },
)
