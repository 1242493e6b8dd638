"""What was detected on this machine, and what follows from it."""

from __future__ import annotations

import statistics
import textwrap
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
from rightbatch.measure.hardware import PressureGauge

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


def lines(facts: dict[str, Any]) -> str:
    """The same for people: what was seen, and what it means."""
    device = facts["accelerator"] or "none; the CPU is used"
    quiet = "quiet"
    if facts["jitter"] > 0.3 or (facts["stalled"] or 0) > 0.1:
        quiet = "busy: times are uncertain, CPU time may be fitted instead"
    pressure = "no /proc/pressure/cpu: contention is seen from CPU time alone"
    if facts["stalled"] is not None:
        pressure = f"{facts['stalled']:.0%} of the time something waited for a CPU"
    extras = [
        f"{name} {version or 'missing (pip install rightbatch[examples])'}: "
        f"for {OPTIONAL[name]}"
        for name, version in facts["optional"].items()
    ]
    rows = [
        (
            "rightbatch",
            f"{facts['rightbatch']}, torch {facts['torch']}, numpy {facts['numpy']}",
        ),
        ("processor", facts["processor"]),
        ("cores", f"{facts['cores']} usable, {facts['threads']} threads in torch"),
        ("memory", f"{show_bytes(facts['free_memory_bytes'])} free"),
        ("accelerator", device),
        (
            "clock",
            f"{show_seconds(facts['clock_resolution_s'])} resolution, jitter "
            f"{facts['jitter']:.0%}: {quiet}",
        ),
        ("pressure", pressure),
        ("energy", facts["energy"]),
        *(("optional", text) for text in extras),
    ]
    return "\n".join(
        textwrap.fill(
            f"{label:<13}{text}",
            80,
            subsequent_indent=" " * 13,
            break_on_hyphens=False,
        )
        for label, text in rows
    )
