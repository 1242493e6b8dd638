"""Run under torchrun by tuning/test_tune_ranks.py: timing, noise and a race on ranks."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from cases import regression_job, with_target
from rightbatch.measure.noise import measure_noise
from rightbatch.measure.time import measure_times
from rightbatch.schedules.scaling import scaling_for
from rightbatch.training.ranks import leave
from rightbatch.training.run_state import RunState
from rightbatch.tuning.race import Entry, race


def entry(role: str, size: int, lr: float) -> Entry:
    """A candidate at a multiple of today's rate."""
    scaling = scaling_for("sgd", 16, 16)
    object.__setattr__(scaling, "lr", lr)
    return Entry(
        role=role,
        batch_size=size,
        micro_batch=size,
        lr=lr,
        scaling=scaling,
        step_s=1e-4,
    )


def main(out: Path) -> None:
    """What every rank finds, written by the first."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    job = with_target(
        regression_job(examples=512, model=lambda: nn.Linear(5, 1)), target=0.0
    )
    run = RunState.start(job)
    fresh = run.snapshot()
    times, _, _ = measure_times(run, budget_s=0.5)
    run.rewind(fresh)
    noise = measure_noise(
        run,
        group_size=8,
        micro_batch=4,
        generator=torch.Generator().manual_seed(0),
    )
    alone = RunState.start(job, alone=True)
    noise_alone = measure_noise(
        alone,
        group_size=8,
        micro_batch=4,
        generator=torch.Generator().manual_seed(0),
    )
    for _ in range(5):
        run.step()
    # A clock of this rank alone, faster on the other: only the first one counts.
    clock = itertools.count(step=1 + dist.get_rank())
    result = race(
        run,
        run.snapshot(),
        [entry("plan", 32, 1.0), entry("today", 16, 1.0), entry("slow", 16, 0.01)],
        budget_s=0.9,
        held_out=None,
        clock=lambda: next(clock) / 1024,
    )
    assert result is not None
    found: dict[str, Any] = {
        "sizes": [p.micro_batch for p in times],
        "noise": noise.noise_scale.value,
        "noise alone": noise_alone.noise_scale.value,
        "steps": [c.steps for c in result.candidates],
        "metrics": [c.metrics for c in result.candidates],
        "weights": [p.tolist() for p in run.model.parameters()],
    }
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(everyone))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
