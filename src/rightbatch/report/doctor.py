"""What was detected on this machine, and what follows from it."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from rightbatch.core.machine import (
    free_memory_bytes,
    installed,
    processor_name,
    usable_cores,
)
from rightbatch.core.units import show_bytes, show_seconds
from rightbatch.measure.energy import find_meter
from rightbatch.measure.hardware import PRESSURE, PressureGauge

OPTIONAL = {"scikit-learn": "the built-in job digits"}
BEATS = 200  # short equal pieces of work whose spread is the clock's jitter


def examine() -> dict[str, Any]:
    """Look at the machine; takes about a second."""
    gauge, beats = PressureGauge(), []
    for _ in range(BEATS):
        started = time.perf_counter()
        sum(range(20_000))
        beats.append(time.perf_counter() - started)
    contention = gauge.contention(1.0)
    quantiles = statistics.quantiles(beats, n=20)
    return {
        "rightbatch": installed("rightbatch"),
        "torch": str(torch.__version__),
        "numpy": installed("numpy"),
        "processor": processor_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "free_memory_bytes": free_memory_bytes(),
        "accelerator": _accelerator(),
        "energy": find_meter(torch.device(_device()))[1],
        "clock_resolution_s": time.get_clock_info("perf_counter").resolution,
        "jitter": (quantiles[-1] - quantiles[0]) / statistics.median(beats),
        "stalled": contention.stalled,
        "pressure_file": PRESSURE.exists(),
        "optional": {name: installed(name) for name in OPTIONAL},
    }


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _accelerator() -> str | None:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return "mps"
    return None


def lines(found: dict[str, Any]) -> str:
    """The same for people: what was seen, and what it means."""
    device = found["accelerator"] or "none; the CPU is used"
    quiet = "quiet"
    if found["jitter"] > 0.3 or (found["stalled"] or 0) > 0.1:
        quiet = "busy: times are uncertain, CPU time may be fitted instead"
    pressure = "no /proc/pressure/cpu: contention is seen from CPU time alone"
    if found["stalled"] is not None:
        pressure = f"{found['stalled']:.0%} of the time something waited for a CPU"
    extras = [
        f"{name} {version or 'missing (pip install rightbatch[examples])'}: "
        f"for {OPTIONAL[name]}"
        for name, version in found["optional"].items()
    ]
    rows = [
        (
            "rightbatch",
            f"{found['rightbatch']}, torch {found['torch']}, numpy {found['numpy']}",
        ),
        ("processor", found["processor"]),
        ("cores", f"{found['cores']} usable, {found['threads']} threads in torch"),
        ("memory", f"{show_bytes(found['free_memory_bytes'])} free"),
        ("accelerator", device),
        (
            "clock",
            f"{show_seconds(found['clock_resolution_s'])} resolution, jitter "
            f"{found['jitter']:.0%}: {quiet}",
        ),
        ("pressure", pressure),
        ("energy", found["energy"]),
        *(("optional", text) for text in extras),
    ]
    return "\n".join(f"{label:<13}{text}" for label, text in rows)
