"""The law of memory is the allocator's own peak, and its boundary is a real one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import rightbatch as rb
from device_cases import large
from memory_jobs import MIB, job_of, wide
from rightbatch.memory.peak import measure_memory
from rightbatch.memory.step import step_of
from rightbatch.memory.step_law import trace_law
from rightbatch.memory.trial import try_step
from rightbatch.training.run_state import RunState

Record = Callable[[str, object], None]


def wide_job(device: torch.device) -> rb.Job:
    """16 KiB an activation; more examples than fit."""
    return job_of(model=wide, count=2**20 if large(device) else 8192, device=device)


def test_peaks_grow_as_the_law_says(
    device: torch.device, record_property: Record
) -> None:
    """Between two sizes, so that what libraries keep cancels: within 1 %."""
    job = wide_job(device)
    sizes = (16_384, 65_536) if large(device) else (256, 1024)
    law = trace_law(step_of(job), device, device, 2**36)
    run = RunState.start(job)
    run.step()
    real = [measure_memory(run, size).peak_memory_bytes for size in sizes]
    predicted = [law.peak(size) for size in sizes]
    growth = (predicted[1] - predicted[0]) / (real[1] - real[0])
    record_property("growth of the peak, predicted / real", f"{growth:.4f}")
    assert growth == pytest.approx(1, abs=0.01)


def test_the_largest_batch_runs_and_a_little_more_does_not(
    device: torch.device, record_property: Record
) -> None:
    """10 % more on a GPU; twice on the CPU, whose malloc may hold so much."""
    job, memory = wide_job(device), (8192 if large(device) else 60) * MIB
    law = rb.largest_batch(job, memory)
    assert law.certificate.confidence == "verified"
    assert law.largest < job.length / 2
    step, limit = step_of(job), law.budget.bytes
    more = round((1.1 if large(device) else 2.0) * law.largest)
    record_property("largest batch in that memory", f"{law.largest:,}")
    room = limit if large(device) else 2 * limit
    assert try_step(step, law.largest, device, limit=room).fits
    assert not try_step(step, more, device, limit=limit).fits
