"""Batch size and learning rate as functions of examples seen, and what follows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch.schedules.by_examples import ByExamples
    from rightbatch.schedules.hyperparameters import Hyperparameters
    from rightbatch.schedules.live import FollowNoise, SignalToNoise
    from rightbatch.schedules.lr_exchange import AlongRate, InsteadOfDecay
    from rightbatch.schedules.rate import Rate
    from rightbatch.schedules.schedule import Anneal, Constant, Ramp, Schedule, Stages

__all__ = [
    "AlongRate",
    "Anneal",
    "ByExamples",
    "Constant",
    "FollowNoise",
    "Hyperparameters",
    "InsteadOfDecay",
    "Ramp",
    "Rate",
    "Schedule",
    "SignalToNoise",
    "Stages",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "schedules.by_examples": ("ByExamples",),
        "schedules.hyperparameters": ("Hyperparameters",),
        "schedules.live": (
            "FollowNoise",
            "SignalToNoise",
        ),
        "schedules.lr_exchange": (
            "AlongRate",
            "InsteadOfDecay",
        ),
        "schedules.rate": ("Rate",),
        "schedules.schedule": (
            "Anneal",
            "Constant",
            "Ramp",
            "Schedule",
            "Stages",
        ),
    },
)
