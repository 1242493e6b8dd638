"""Run folders with measurements made up from known laws."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from cases import made_up
from rightbatch.core.estimate import Estimate
from rightbatch.measure.measurements import Measurements, TimePoint
from rightbatch.training.run_folder import MEASUREMENTS


def run_folder(measurements: Measurements | None = None, **laws: Any) -> Path:
    """A new folder that holds measurements: those given, or those of `made_up`."""
    folder = Path(tempfile.mkdtemp(prefix="rightbatch-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (measurements or made_up(**laws)).save(folder / MEASUREMENTS)
    return folder


def with_a_step(measurements: Measurements, edge: int, ratio: float) -> Measurements:
    """The same, with a size past ``edge`` that was timed at so many times its time."""
    below = next(p for p in measurements.times if p.micro_batch == edge)
    rounds = tuple(ratio * seconds for seconds in below.rounds)
    past = TimePoint(
        micro_batch=edge + 1,
        step_time_s=Estimate.median(rounds, "s"),
        process_time_s=Estimate.median(rounds, "s"),
        update_time_s=below.update_time_s,
        fetch_time_s=0.0,
        rounds=rounds,
        process_rounds=rounds,
    )
    times = sorted([*measurements.times, past], key=lambda p: p.micro_batch)
    return replace(measurements, times=tuple(times))
