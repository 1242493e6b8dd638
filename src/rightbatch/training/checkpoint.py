"""Checkpoints: whole or not at all, checked when read, and no code runs from them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rightbatch.core.errors import JobError, RunFolderError
from rightbatch.core.json_io import parse_json, write_text
from rightbatch.core.text import first_line
from rightbatch.core.torch_private import is_out_of_memory

FORMAT = "rightbatch/checkpoint/4"
KEPT = 2  # the last one, and the one before in case it is damaged
_NAME = re.compile(r"step-\d+\.pt")
_PLAIN = (str, bytes, int, float, bool, type(None), torch.Tensor)


class Checkpoints:
    """The checkpoints of one run: ``step-00001200.pt`` with a ``.json`` that vouches.

    A checkpoint counts once its ``.json`` is there, which holds its length and SHA-256
    and is written last; so a run killed at any moment has the new one or the old.

    Args:
        folder: Made when the first is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: dict[str, Any], *, steps: int, about: dict[str, Any]) -> Path:
        """Write one, then let go of all but the last two.

        Args:
            state: Tensors and plain values in nested dicts, lists and tuples.
            steps: Names it.
            about: Kept in the ``.json``, for people.

        Raises:
            RunFolderError: It cannot be written, and nothing has changed; or the state
                holds something that could not be read again without running code.
        """
        state = _plain(state, "state")
        path = self.folder / f"step-{steps:010d}.pt"
        temporary = path.with_suffix(".tmp")
        vouching = path.with_suffix(".json")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)  # of a run that was killed, or a link
            with temporary.open("xb") as file:
                torch.save({"format": FORMAT, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            manifest = {
                "format": FORMAT,
                **_digest(temporary),
                "steps": steps,
                **about,
            }
            vouching.unlink(missing_ok=True)  # of the same step
            temporary.replace(path)
            _sync(self.folder)
            write_text(vouching, json.dumps(manifest, indent=1) + "\n")
            _sync(self.folder)
        # torch tells a full disk as a RuntimeError.
        except (OSError, RuntimeError, MemoryError, RunFolderError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise RunFolderError(
                f"cannot write the checkpoint {path}",
                seen=first_line(error, 120),
                why="the one before it is untouched",
                fix="free some space, or another --out",
            ) from error
        self._prune()
        return path

    def paths(self) -> list[Path]:
        """Every finished one, the newest first."""
        found = self.folder.glob("step-*.pt") if self.folder.is_dir() else ()
        names = [p for p in found if _NAME.fullmatch(p.name)]
        return sorted(p for p in names if p.with_suffix(".json").is_file())[::-1]

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest that is whole; a damaged one is told and passed over.

        Raises:
            RunFolderError: There are some, and none is whole.
        """
        reasons = []
        for path in self.paths():
            try:
                state = load_checkpoint(path)
            except RunFolderError as error:
                reasons.append(error)
                continue
            if reasons:
                warnings.warn(
                    f"{reasons[0].what} ({reasons[0].seen}): going on from the one "
                    f"before, {path.name}",
                    stacklevel=2,
                )
            return path, state
        if reasons:
            raise RunFolderError(
                f"none of the {len(reasons)} checkpoints in {self.folder} is whole",
                seen="; ".join(f"{e.what}: {e.seen}" for e in reasons)[:300],
                why="a run that went on from a damaged one would not be the same run",
                fix="begin again in another --out, or copy a checkpoint back",
            )
        return None

    def _prune(self) -> None:
        """What cannot be deleted stays: that is no reason to end a run."""
        kept = set(self.paths()[:KEPT])
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            vouched = path.with_suffix(".json").exists() or path.suffix != ".pt"
            if path.with_suffix(".pt") not in kept and vouched:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    warnings.warn(f"cannot delete {path}: {error}", stacklevel=3)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; code in it is never run.

    Args:
        path: The ``.pt``; its ``.json``, where there is one, is held against it.

    Raises:
        RunFolderError: Missing, cut short, damaged, or no checkpoint of ours.
        JobError: Memory ran out, which says nothing of the file.
    """
    try:
        _check_sum(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except RunFolderError:
        raise
    except Exception as error:  # torch.load raises half a dozen kinds
        if is_out_of_memory(error):
            raise no_memory(path, error) from error
        raise RunFolderError(
            f"cannot read the checkpoint {path}",
            seen=first_line(error, 160),
            why="only tensors and plain values are read, so that no code runs from it",
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise RunFolderError(
            f"{path} is not a {FORMAT} file",
            seen=f"format: {found!r}",
            fix="use the version of rightbatch that wrote it, if it is one",
        )
    return state


def no_memory(path: Path, error: BaseException) -> JobError:
    """What is said where memory runs out while a file is read."""
    return JobError(
        f"memory ran out while {path} was read",
        seen=first_line(error, 120),
        why="the file may be whole, so nothing older is taken instead",
        fix="free some memory, and go on with --resume",
    )


def _check_sum(path: Path) -> None:
    vouching = path.with_suffix(".json")
    if not vouching.is_file():
        return
    manifest = parse_json(vouching.read_bytes())
    wanted = {name: manifest[name] for name in ("bytes", "sha256")}
    present = _digest(path)
    if present != wanted:
        raise RunFolderError(
            f"the checkpoint {path} is damaged",
            seen=f"{present['bytes']} bytes, SHA-256 {present['sha256'][:8]}; written "
            f"were {wanted['bytes']} bytes, SHA-256 {wanted['sha256']}"[:160],
            why="it was cut short or changed after it was written",
        )


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _plain(value: Any, where: str) -> Any:
    """As ``weights_only`` can read it back: numpy's numbers as Python's.

    Raises:
        RunFolderError: It cannot; the message names the place.
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in _PLAIN or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Mapping):
        return {
            _plain(key, where): _plain(item, f"{where}[{key!r}]")
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        items = [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise RunFolderError(
        "the run's state cannot be saved",
        seen=f"{where} is a {type(value).__module__}.{type(value).__name__}",
        why="reading it back would run code from the file",
        fix="keep plain numbers and tensors in the optimizer's and model's state",
    )


def _sync(folder: Path) -> None:
    """Make a rename last through a power failure, where folders can be synced."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
