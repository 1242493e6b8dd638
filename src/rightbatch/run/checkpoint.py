"""Checkpoints: written whole or not at all, loadable without running code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from rightbatch.errors import RunFolderError
from rightbatch.training import Training

FORMAT = "rightbatch/checkpoint/1"


def save_checkpoint(training: Training, path: Path, batch_size: int) -> None:
    """Save model, optimizer and stream position through a temporary file.

    Args:
        training: The run.
        path: Where; the parent folder is made.
        batch_size: Kept beside, for people.

    Raises:
        RunFolderError: It cannot be written; an older file is then still whole.
    """
    state: dict[str, Any] = {
        "format": FORMAT,
        "job": training.job.name,
        "batch_size": batch_size,
        "steps": training.steps,
        "examples": training.examples,
        "position": training.stream.position,
        "seed": training.stream.seed,
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
    }
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        temporary.unlink(missing_ok=True)
        raise RunFolderError(
            f"cannot write the checkpoint {path}", seen=str(error).splitlines()[0]
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; code in it is never run.

    Raises:
        RunFolderError: Missing, damaged, or no checkpoint of ours.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen kinds
        raise RunFolderError(
            f"cannot read the checkpoint {path}", seen=str(error).splitlines()[0]
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RunFolderError(f"{path} is not a {FORMAT} file")
    return state
