"""Noise as temperature."""

from __future__ import annotations

from rightbatch.lab.claim import Claim
from rightbatch.lab.physics import (
    annealing,
    boltzmann,
    escape_sum,
    escape_time,
    flat_over_sharp,
    noise_early_late,
    stationary,
    temperature,
)

PHYSICS: tuple[Claim, ...] = (
    stationary.CLAIM,
    temperature.CLAIM,
    boltzmann.CLAIM,
    escape_time.CLAIM,
    escape_sum.CLAIM,
    noise_early_late.CLAIM,
    annealing.CLAIM,
    flat_over_sharp.CLAIM,
)
