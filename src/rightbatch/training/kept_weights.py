"""The trained model alone: a plain state dict, for use outside of rightbatch."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from rightbatch.core.text import first_line
from rightbatch.job.job import Job
from rightbatch.training.run_state import RunState
from rightbatch.training.trace import TraceRow
from rightbatch.training.weights import weights_of

KEEP = ("last", "best")


def is_best(job: Job, rows: Sequence[TraceRow]) -> bool:
    """Whether the last row's metric is the best so far, by the job's goal."""
    metrics = [row.metric for row in rows if row.metric is not None]
    if not metrics or rows[-1].metric is None:
        return False
    best = max(metrics) if job.goal == "max" else min(metrics)
    return metrics[-1] == best and metrics.count(best) == 1


def write_weights(run: RunState, path: Path) -> None:
    """Write the state dict of the job's own model; the first rank does. Collective.

    Through a temporary file, so that a run killed at any moment leaves the old one or
    the new. What fails is told, and training goes on: the checkpoints are elsewhere.

    Args:
        run: Between two steps.
        path: For ``torch.load`` and ``model.load_state_dict``.
    """
    weights, _ = weights_of(run.network, run.optimizer, sharded=run.ranks.sharded)
    if run.ranks.rank != 0:
        return
    temporary = path.with_suffix(".tmp")
    try:
        torch.save(weights, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch tells a full disk so
        with contextlib.suppress(OSError):
            temporary.unlink()
        told = first_line(error, 120)
        warnings.warn(f"cannot write {path}: {told}; training goes on", stacklevel=2)
