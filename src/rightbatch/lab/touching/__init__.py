"""When examples touch."""

from __future__ import annotations

from rightbatch.lab.claim import Claim

TOUCHING: tuple[Claim, ...] = ()
