"""Energy of a step against the micro-batch, where a meter exists."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import time
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch

from rightbatch.core.estimate import Estimate
from rightbatch.measure.measurements import EnergyPoint
from rightbatch.measure.time import wait_for
from rightbatch.training.run_state import RunState

# Counters of GPUs are renewed every 10 ms and more; a window of a second holds enough
# of them (Zeus's own advice) [cited].
WINDOW_S = 1.0
ROUNDS = 3
MOST_SIZES = 4


class Meter(Protocol):
    """Counts joules between two calls."""

    name: str

    def begin(self) -> None:
        """Start a window."""

    def end(self) -> float:
        """End it: joules since `begin`."""


class ZeusMeter:
    """Zeus (You et al. 2023, arXiv:2208.06102): the GPU's counter, or the CPU's RAPL.

    Args:
        monitor: A ``zeus.monitor.ZeusMonitor``.
        gpu: Whether the job runs on a GPU: then its counter is read, else the CPU's.
    """

    def __init__(self, monitor: Any, *, gpu: bool) -> None:
        self.monitor, self.gpu = monitor, gpu
        self.name = "zeus, GPU counter" if gpu else "zeus, RAPL of the whole CPU"

    def begin(self) -> None:
        """Start a window."""
        self.monitor.begin_window("rightbatch", sync_execution=False)

    def end(self) -> float:
        """End it: joules since `begin`; NaN where nothing was counted."""
        found = self.monitor.end_window("rightbatch", sync_execution=False)
        parts = found.gpu_energy if self.gpu else found.cpu_energy
        return sum(parts.values()) if parts else float("nan")


def find_meter(device: torch.device) -> tuple[Meter | None, str]:
    """A meter for what runs on a device; or None, and why there is none."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("zeus").setLevel(logging.ERROR)
            from zeus.monitor import ZeusMonitor

            gpu = device.type == "cuda"
            index = [device.index or 0] if gpu else []
            monitor = ZeusMonitor(gpu_indices=index, cpu_indices=None)
            meter = ZeusMeter(monitor, gpu=gpu)
            meter.begin()
            time.sleep(0.02)
            joules = meter.end()
    except ImportError:
        return None, "unavailable: zeus is missing (pip install 'rightbatch[energy]')"
    except Exception as error:  # drivers and permissions fail in many ways
        text = (str(error).splitlines() or [type(error).__name__])[0]
        return None, f"unavailable: {text[:100]}"
    if not joules >= 0:
        return None, "unavailable: this machine counts no energy for its processor"
    return meter, meter.name


def measure_energy(
    run: RunState,
    sizes: list[int],
    meter: Meter,
    *,
    window_s: float = WINDOW_S,
    rounds: int = ROUNDS,
    tick: Callable[[int], None] = lambda size: None,
) -> tuple[EnergyPoint, ...]:
    """Joules of a step at a few sizes, in interleaved windows of a second and more.

    Args:
        run: Has made at least one step; its steps go on.
        sizes: Micro-batches; four of them, spread over all, are taken.
        meter: Counts.
        window_s: Least seconds of a window.
        rounds: Windows for each size.
        tick: Called with every size measured.
    """
    if len(sizes) > MOST_SIZES:
        last = len(sizes) - 1
        sizes = [sizes[round(i * last / (MOST_SIZES - 1))] for i in range(MOST_SIZES)]
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            run.split(size)
            run.step()  # the caches still hold another size
            wait_for(run.device)
            meter.begin()
            started, steps = time.perf_counter(), 0
            while run.ranks.first(
                steps == 0 or time.perf_counter() - started < window_s
            ):
                run.step()
                wait_for(run.device)
                steps += 1
            joules = meter.end() / steps
            if math.isfinite(joules) and joules > 0:  # a counter that did not move
                found[size].append(joules)
            tick(size)
    return tuple(
        EnergyPoint(
            micro_batch=size,
            joules=Estimate.median(samples, "J"),
            rounds=tuple(samples),
            meter=meter.name,
        )
        for size, samples in found.items()
        if samples
    )
