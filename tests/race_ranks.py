"""Run under torchrun by tuning/test_tune_ranks.py: time, noise and race on ranks."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from beliefs import belief
from cases import regression_job, with_target
from rightbatch.core.json_io import to_plain
from rightbatch.measure.noise import measure_noise
from rightbatch.measure.time import measure_times
from rightbatch.schedules.scaling import scaling_for
from rightbatch.training.ranks import leave
from rightbatch.training.run_state import RunState
from rightbatch.tuning import race
from rightbatch.tuning.lane import Setting
from rightbatch.tuning.race import Racing


def setting(batch_size: int, lr: float) -> Setting:
    """A candidate whose step takes a tenth of a millisecond by the law."""
    return Setting(
        batch_size=batch_size,
        micro_batch=batch_size,
        lr=lr,
        lr_factor=lr / 0.01,
        scaling=scaling_for("sgd", 16, batch_size, rule="none"),
        step_s=1e-4,
    )


def raced(run: RunState) -> Racing:
    """A race by a clock of this rank alone, faster on the other: only one counts."""
    ticks = itertools.count(step=1 + dist.get_rank())
    clock: Any = SimpleNamespace(monotonic=lambda: next(ticks) / 1024)
    race.time = clock
    rates = [0.01 * 2**i for i in range(-4, 5)]
    grid = [(b, lr) for b in (8, 16, 32, 64) for lr in rates]
    settings = [setting(16, 0.01), *(setting(*s) for s in grid if s != (16, 0.01))]
    prior = belief(16, 0.01, noise=3.0)
    racing = Racing(
        run,
        run.snapshot(),
        None,
        settings,
        prior,
        metric_s=0.0,
        unit_costs=[s.step_s for s in settings],
    )
    racing.take_in((), diverged=False)
    racing.search(next(ticks) / 1024 + 0.5)
    return racing


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
    lanes = raced(run).race().lanes
    found: dict[str, Any] = {
        "sizes": [p.micro_batch for p in times],
        "noise": noise.noise_scale.value,
        "noise alone": noise_alone.noise_scale.value,
        "lanes": [to_plain(lane) for lane in lanes],
        "weights": [p.tolist() for p in run.model.parameters()],
    }
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(everyone))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
