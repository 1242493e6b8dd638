"""The trace of a run: one JSON line for every evaluation, kept through crashes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rightbatch.core.errors import RunFolderError
from rightbatch.core.json_io import from_plain, to_plain, write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One line of ``trace.jsonl``: where a run stood at an evaluation.

    Attributes:
        steps: Optimizer updates so far.
        examples: Examples seen so far.
        time_s: Wall seconds spent on training, evaluations left out.
        process_time_s: CPU seconds of this process for the same.
        loss: Mean loss of the last batch.
        metric: The job's ``evaluate``, or None where it has none.
        batch_size: Of the last step.
        lr: Learning rate of the first param group in it; None: it has none.
        micro_batch: Most examples in memory at once; 0: the whole batch.
        noise_scale: Of the gradient, in examples, where it is measured.
        events: What was decided or happened since the last row, with the reason.
    """

    steps: int
    examples: int
    time_s: float
    process_time_s: float
    loss: float
    metric: float | None
    batch_size: int = 0
    lr: float | None = 0.0
    micro_batch: int = 0
    noise_scale: float | None = None
    events: tuple[str, ...] = ()


class Trace:
    """Writes rows as they come.

    Args:
        path: The file; its folder exists.
        rows: What it begins with: the rows up to the checkpoint gone on from.

    Raises:
        RunFolderError: It cannot be written.
    """

    def __init__(self, path: Path, rows: tuple[TraceRow, ...] = ()) -> None:
        write_text(path, "".join(_line(row) for row in rows))
        try:
            self._file: Any = path.open("a", encoding="utf-8")
        except OSError as error:
            raise RunFolderError(
                f"cannot write {path}", seen=str(error.strerror)
            ) from error
        self.path = path

    def write(self, row: TraceRow) -> None:
        """Append one row, at once.

        Raises:
            RunFolderError: The disk is full, or gone.
        """
        try:
            self._file.write(_line(row))
            self._file.flush()
        except OSError as error:
            raise RunFolderError(
                f"cannot write {self.path}",
                seen=str(error.strerror),
                fix="free some space, and go on with --resume",
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _line(row: TraceRow) -> str:
    return json.dumps(to_plain(row)) + "\n"


def read_trace(path: Path) -> tuple[TraceRow, ...]:
    """Read a ``trace.jsonl``; a last line cut short by a crash is left out.

    Raises:
        RunFolderError: It cannot be read, or another line is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RunFolderError(f"cannot read {path}", seen=str(error.strerror)) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(from_plain(TraceRow, json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise RunFolderError(
                f"{path} is damaged in line {number}", seen=str(error)
            ) from error
    return tuple(rows)
