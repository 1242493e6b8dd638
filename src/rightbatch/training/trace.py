"""The trace of a run: one JSON line for every evaluation, kept through crashes."""

from __future__ import annotations

import contextlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

from rightbatch.core.errors import RunFolderError
from rightbatch.core.json_io import (
    MISREAD,
    from_plain,
    parse_json,
    to_plain,
    write_text,
)


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
    """Writes rows as they come; those for which there is no room wait in memory.

    Args:
        path: The file; its folder exists.
        rows: What it begins with: the rows up to the checkpoint gone on from.

    Raises:
        RunFolderError: It cannot be written.
    """

    def __init__(self, path: Path, rows: tuple[TraceRow, ...] = ()) -> None:
        text = "".join(_line(row) for row in rows)
        write_text(path, text)
        try:
            self._file = path.open("r+b", buffering=0)
        except OSError as error:
            raise RunFolderError(
                f"cannot write {path}", seen=str(error.strerror)
            ) from error
        self.path = path
        self._size = len(text.encode())  # of whole lines
        self._waiting: list[str] = []

    def write(self, row: TraceRow) -> None:
        """Append one row, at once. What fails is told, and training goes on."""
        self._waiting.append(_line(row))
        try:
            self._write_waiting()
        except OSError as error:
            if len(self._waiting) == 1:
                warnings.warn(
                    f"cannot write {self.path}: {error.strerror}; its rows are kept "
                    "until there is room, and training goes on",
                    stacklevel=3,
                )

    def _write_waiting(self) -> None:
        """Over what was broken off the last time."""
        content = "".join(self._waiting).encode()
        self._file.seek(self._size)
        left = content
        while left:
            left = left[self._file.write(left) :]
        self._size += len(content)
        self._waiting.clear()

    def finish(self) -> None:
        """The run has ended: the last chance for rows that wait.

        Raises:
            RunFolderError: There is still no room for them.
        """
        try:
            self._write_waiting()
        except OSError as error:
            raise RunFolderError(
                f"cannot write {self.path}",
                seen=f"{error.strerror}: its last {len(self._waiting)} rows are lost",
                fix="free some space",
            ) from error

    def close(self) -> None:
        """Close the file; rows that wait are tried once more."""
        with contextlib.suppress(OSError):
            self._write_waiting()
        with contextlib.suppress(OSError):
            self._file.close()


def _line(row: TraceRow) -> str:
    return json.dumps(to_plain(row)) + "\n"


def read_trace(path: Path) -> tuple[TraceRow, ...]:
    """Read a ``trace.jsonl``; a last line cut short by a crash is left out.

    Raises:
        RunFolderError: It cannot be read, or another line is damaged.
    """
    try:
        lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    except OSError as error:
        raise RunFolderError(f"cannot read {path}", seen=str(error.strerror)) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(from_plain(TraceRow, parse_json(line)))
        except MISREAD as error:
            if number == len(lines):
                break
            raise RunFolderError(
                f"{path} is damaged in line {number}",
                seen=f"{error}"[:160],
                fix="mend or delete this line; or move the file away: the run goes on "
                "without the rows before its checkpoint",
            ) from error
    return tuple(rows)
