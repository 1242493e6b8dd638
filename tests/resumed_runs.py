"""What tests of runs that end early share: states compared, runs stopped."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import rightbatch as rb
from cases import regression_job
from rightbatch.training.checkpoint import Checkpoints


def state_of(folder: Path) -> dict[str, Any]:
    found = Checkpoints(folder / "checkpoints").newest()
    assert found is not None
    state = found[1]
    for key in ("time_s", "process_time_s"):
        state.pop(key)
    state["stream"].pop("segment")
    return state


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def stop_after(rows: int) -> Any:
    count = 0

    def watch(row: Any) -> None:
        nonlocal count
        count += 1
        if count == rows:
            os.kill(os.getpid(), signal.SIGTERM)

    return watch


def poisoned(at: int) -> rb.Job:
    calls = {"n": 0}

    def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        calls["n"] += 1
        value = (model(batch[0]) - batch[1]).square().mean()
        return value * float("nan") if calls["n"] == at else value

    return replace(regression_job(), loss=loss)
