"""Curvature, sharpness, temperature and pictures of the loss surface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch.landscape.edge_of_stability import batch_sharpness
    from rightbatch.landscape.point_sharpness import sharpness
    from rightbatch.landscape.sharpness_reading import Sharpness, compare

__all__ = [
    "Sharpness",
    "batch_sharpness",
    "compare",
    "sharpness",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "landscape.edge_of_stability": ("batch_sharpness",),
        "landscape.point_sharpness": ("sharpness",),
        "landscape.sharpness_reading": ("Sharpness", "compare"),
    },
)
