"""Curvature, sharpness, temperature and pictures of the loss surface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch.landscape.edge_of_stability import batch_sharpness
    from rightbatch.landscape.effective_temperature import Temperature, temperature
    from rightbatch.landscape.exchange import (
        Exchange,
        equal_jitter,
        equal_temperature,
        held_constant,
    )
    from rightbatch.landscape.loss_surface import Surface, surface
    from rightbatch.landscape.point_sharpness import sharpness
    from rightbatch.landscape.sharpness_reading import Sharpness, compare
    from rightbatch.landscape.stationary import reshuffled_variance, stationary_variance
    from rightbatch.landscape.training_paths import Trajectory, trajectories

__all__ = [
    "Exchange",
    "Sharpness",
    "Surface",
    "Temperature",
    "Trajectory",
    "batch_sharpness",
    "compare",
    "equal_jitter",
    "equal_temperature",
    "held_constant",
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
        "landscape.edge_of_stability": ("batch_sharpness",),
        "landscape.effective_temperature": (
            "Temperature",
            "temperature",
        ),
        "landscape.exchange": (
            "Exchange",
            "equal_jitter",
            "equal_temperature",
            "held_constant",
        ),
        "landscape.loss_surface": (
            "Surface",
            "surface",
        ),
        "landscape.point_sharpness": ("sharpness",),
        "landscape.sharpness_reading": (
            "Sharpness",
            "compare",
        ),
        "landscape.stationary": (
            "reshuffled_variance",
            "stationary_variance",
        ),
        "landscape.training_paths": (
            "Trajectory",
            "trajectories",
        ),
    },
)
