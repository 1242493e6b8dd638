"""What the batch does to the result."""

from __future__ import annotations

from rightbatch.lab.claim import Claim
from rightbatch.lab.generalisation import (
    batch_sharpness,
    batchnorm_batch,
    data_size,
    small_against_large,
    top_curvature,
)

GENERALISATION: tuple[Claim, ...] = (
    small_against_large.CLAIM,
    batch_sharpness.CLAIM,
    top_curvature.CLAIM,
    batchnorm_batch.CLAIM,
    data_size.CLAIM,
)
