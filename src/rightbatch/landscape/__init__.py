"""Curvature, sharpness, surface, temperature; whether a large batch generalises."""

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch.landscape.compare import compare_batches
    from rightbatch.landscape.comparison import Comparison

__all__ = [
    "Comparison",
    "compare_batches",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "landscape.compare": ("compare_batches",),
        "landscape.comparison": ("Comparison",),
    },
)
