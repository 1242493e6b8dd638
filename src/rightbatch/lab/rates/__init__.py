"""Batch and learning rate."""

from __future__ import annotations

from rightbatch.lab.claim import Claim

RATES: tuple[Claim, ...] = ()
