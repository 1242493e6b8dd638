"""What a step costs."""

from __future__ import annotations

from rightbatch.lab.claim import Claim

COST: tuple[Claim, ...] = ()
