"""What was measured of memory, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPoint:
    """Peak bytes of tensors alive in one step at one micro-batch."""

    micro_batch: int
    peak_memory_bytes: int
