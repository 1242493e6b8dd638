"""The machine as measurements record it, and whether it was busy meanwhile."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import torch

from rightbatch.core.machine import free_memory_bytes, processor_name, usable_cores
from rightbatch.measure.measurements import Contention, Machine

PRESSURE = Path("/proc/pressure/cpu")
STALLED_LIMIT = 0.10  # share of time waiting for a CPU that we call contended [assumed]
WAITED_LIMIT = 1.25  # wall over CPU time; only where the kernel does not tell [assumed]


def machine(device_type: str, world_size: int = 1) -> Machine:
    """The machine as measurements record it, for one of so many processes."""
    name, memory = processor_name(), free_memory_bytes()
    if device_type == "cuda":
        name = torch.cuda.get_device_name()
        memory = int(torch.cuda.mem_get_info()[0])
    else:
        memory //= int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return Machine(
        device=device_type,
        processor=name,
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        memory_bytes=memory,
        python=platform.python_version(),
        torch=str(torch.__version__),
        world_size=world_size,
    )


class PressureGauge:
    """Share of time that tasks of this machine waited for a CPU, since it was made."""

    def __init__(self) -> None:
        self.started, self.stalled_us = time.monotonic(), self._read()

    @staticmethod
    def _read() -> int | None:
        try:
            some = PRESSURE.read_text(encoding="utf-8").splitlines()[0]
            return int(some.rsplit("total=", 1)[1])
        except (OSError, IndexError, ValueError):
            return None

    def contention(self, wall_over_process: float) -> Contention:
        """Judge the time since this gauge was made.

        Args:
            wall_over_process: Wall time of our own steps over their CPU time (all
                threads); above 1 when the process was kept waiting.
        """
        stalled, now = None, self._read()
        elapsed = time.monotonic() - self.started
        if now is not None and self.stalled_us is not None and elapsed > 0:
            stalled = (now - self.stalled_us) / 1e6 / elapsed
        # Where the kernel keeps account, it alone decides: wall time above CPU time
        # may as well be a job that waits for its data.
        busy = wall_over_process > WAITED_LIMIT
        seen = f"wall time is {wall_over_process:.2f} x CPU time"
        if stalled is not None:
            busy = stalled > STALLED_LIMIT
            seen = f"{stalled:.0%} of the time something waited for a CPU"
        verdict = "the machine was busy" if busy else "the machine was quiet"
        return Contention(busy=busy, stalled=stalled, reason=f"{verdict}: {seen}")
