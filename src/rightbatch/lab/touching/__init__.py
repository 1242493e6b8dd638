"""When examples touch."""

from __future__ import annotations

from rightbatch.lab.claim import Claim
from rightbatch.lab.touching import (
    batchnorm_devices,
    batchnorm_future,
    batchnorm_statistics,
    contrastive_optimum,
    layer_norm_alone,
    negatives,
)

TOUCHING: tuple[Claim, ...] = (
    contrastive_optimum.CLAIM,
    negatives.CLAIM,
    batchnorm_devices.CLAIM,
    batchnorm_future.CLAIM,
    layer_norm_alone.CLAIM,
    batchnorm_statistics.CLAIM,
)
