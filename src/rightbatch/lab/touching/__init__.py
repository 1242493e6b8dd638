"""When examples touch."""

from __future__ import annotations

from rightbatch.lab.claim import Claim
from rightbatch.lab.touching import (
    batchnorm_devices,
    batchnorm_future,
    batchnorm_statistics,
    layer_norm_alone,
)

TOUCHING: tuple[Claim, ...] = (
    batchnorm_devices.CLAIM,
    batchnorm_future.CLAIM,
    layer_norm_alone.CLAIM,
    batchnorm_statistics.CLAIM,
)
