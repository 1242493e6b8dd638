"""What a live schedule is given, made up."""

from __future__ import annotations

import rightbatch as rb
from rightbatch.schedules.schedule import Reading


def reading(noise: float, spread: float = 1.2, signal: float = 1.0) -> Reading:
    def around(value: float) -> rb.Estimate:
        low, high = value / spread, value * spread
        return rb.Estimate(
            value=value, low=low, high=high, unit="examples", n=9, method="test"
        )

    return Reading(
        noise_scale=around(noise), grad_norm_sq=around(signal), first_grad_norm_sq=4.0
    )
