"""Noise as temperature."""

from __future__ import annotations

from rightbatch.lab.claim import Claim

PHYSICS: tuple[Claim, ...] = ()
