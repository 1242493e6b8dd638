"""What a state must share with a run to be gone on from: that it is the same job."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rightbatch.core.errors import SettingError
from rightbatch.job.job import Job
from rightbatch.job.optimizers import rate_in
from rightbatch.job.several_optimizers import optimizer_name


def facts(
    job: Job, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """What must be the same for a checkpoint to be this job's."""
    same: dict[str, Any] = {
        "examples": job.length,
        "batch_size": job.batch_size,
        "seed": job.seed,
        "precision": job.precision,
        "optimizer": optimizer_name(optimizer),
    }
    for name, p in model.named_parameters():
        same[f"parameter {name}"] = list(p.shape)
    for number, group in enumerate(optimizer.param_groups):
        plain = group if rate_in(group) is None else {**group, "lr": rate_in(group)}
        same |= {
            f"param group {number}'s {key}": value
            for key, value in plain.items()
            if isinstance(value, (int, float, str, bool, tuple))
        }
        same[f"param group {number}'s tensors"] = len(group["params"])
    return same


def check_same(saved: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse the checkpoint of another job.

    Raises:
        SettingError: It says what differs.
    """
    for key in own | saved:
        if saved.get(key) != own.get(key):
            raise SettingError(
                f"the checkpoint is of another job: its {key} differs",
                seen=f"{saved.get(key)} then, {own.get(key)} now",
                why="going on from it would be neither run",
                fix="the job as it was, or another --out for a new run",
            )
