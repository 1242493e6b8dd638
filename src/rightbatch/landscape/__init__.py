"""Curvature, sharpness, temperature and pictures of the loss surface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch.landscape.compare import compare_batches
    from rightbatch.landscape.comparison import Comparison
    from rightbatch.landscape.edge_of_stability import batch_sharpness
    from rightbatch.landscape.effective_temperature import Temperature, temperature
    from rightbatch.landscape.exchange import equal_jitter, equal_temperature
    from rightbatch.landscape.loss_surface import Surface, surface
    from rightbatch.landscape.point_sharpness import sharpness
    from rightbatch.landscape.sharpness_reading import Sharpness, compare_sharpness
    from rightbatch.landscape.stationary import reshuffled_variance, stationary_variance
    from rightbatch.landscape.training_paths import Trajectory, trajectories

__all__ = [
    "Comparison",
    "Sharpness",
    "Surface",
    "Temperature",
    "Trajectory",
    "batch_sharpness",
    "compare_batches",
    "compare_sharpness",
    "equal_jitter",
    "equal_temperature",
    "reshuffled_variance",
    "sharpness",
    "stationary_variance",
    "surface",
    "temperature",
    "trajectories",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "landscape.compare": ("compare_batches",),
        "landscape.comparison": ("Comparison",),
        "landscape.edge_of_stability": ("batch_sharpness",),
        "landscape.effective_temperature": ("Temperature", "temperature"),
        "landscape.exchange": ("equal_jitter", "equal_temperature"),
        "landscape.loss_surface": ("Surface", "surface"),
        "landscape.point_sharpness": ("sharpness",),
        "landscape.sharpness_reading": ("Sharpness", "compare_sharpness"),
        "landscape.stationary": ("reshuffled_variance", "stationary_variance"),
        "landscape.training_paths": ("Trajectory", "trajectories"),
    },
)
