"""What the batch does to the result."""

from __future__ import annotations

from rightbatch.lab.claim import Claim

GENERALISATION: tuple[Claim, ...] = ()
