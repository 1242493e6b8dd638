"""What a race believes before it begins, for tests."""

import math

from rightbatch.fit.rate_law import RatePrior


def belief(batch_size: int = 64, lr: float = 0.1, **more: float) -> RatePrior:
    """What a job at this batch and rate expects, noise seen at 100."""
    given: dict[str, float] = {
        "noise": math.log(100),
        "noise_spread": 1.0,
        "growth": 0.3,
        "growth_spread": 0.3,
        "power": 0.95,
        "power_spread": 0.2,
        "lr_spread": 1.4,
    }
    return RatePrior(batch_size=batch_size, lr=lr, **{**given, **more})
