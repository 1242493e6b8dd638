"""What a mini-batch measures."""

from __future__ import annotations

from rightbatch.lab.claim import Claim
from rightbatch.lab.sampling import variance_over_b

SAMPLING: tuple[Claim, ...] = (variance_over_b.CLAIM,)
