"""What a state must share with a run to be gone on from: that it is the same job."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rightbatch.core.errors import SettingError
from rightbatch.job.job import Job


def facts(
    job: Job, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """What must be the same for a checkpoint to be this job's."""
    return {
        "examples": job.length,
        "batch_size": job.batch_size,
        "seed": job.seed,
        "precision": job.precision,
        "parameters": [
            f"{name} {'x'.join(str(n) for n in p.shape)}"
            for name, p in model.named_parameters()
        ],
        "optimizer": type(optimizer).__name__,
        "param groups": [
            {"tensors": len(group["params"]), **_numbers(group)}
            for group in optimizer.param_groups
        ],
    }


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """Its learning rate, betas and the like, as lists where they are tuples."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in group.items()
        if key != "params" and isinstance(value, (int, float, str, bool, tuple))
    }


def check_same(saved: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse the checkpoint of another job.

    Raises:
        SettingError: It says what differs.
    """
    for key, value in own.items():
        if saved.get(key) == value:
            continue
        then, now = _told(key, saved.get(key), value)
        raise SettingError(
            f"the checkpoint is of another job: its {key} differ",
            seen=f"{then} then, {now} now",
            why="going on from it would be neither run",
            fix="the job as it was, or another --out for a new run",
        )


def _told(key: str, then: Any, now: Any) -> tuple[str, str]:
    """What differs, in few words."""
    if key == "parameters":
        odd = sorted(set(then or []) ^ set(now))
        return f"{len(then or [])} tensors", f"{len(now)}; {odd[:2]}"
    if key == "param groups" and then and len(then) == len(now):
        for a, b in zip(then, now, strict=True):
            for name in {**a, **b}:
                if a.get(name) != b.get(name):
                    return f"{name} {a.get(name)}", f"{name} {b.get(name)}"
    return str(then), str(now)
