"""Rows of a trace: kept where the disk is full, refused where the file is damaged."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

import rightbatch as rb
from rightbatch.training.trace import Trace, TraceRow, read_trace


def row(steps: int) -> TraceRow:
    return TraceRow(
        steps=steps,
        examples=16 * steps,
        time_s=0.5,
        process_time_s=0.5,
        loss=1.0,
        metric=None,
        events=(f"step {steps}: ü",),
    )


class Full:
    """A file on a disk with room for some more bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, content: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(content[: self.room])
        self.room -= written
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1, 50, 250])
def test_rows_wait_until_there_is_room(room: int, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    trace = Trace(path, (row(1),))
    file = trace._file
    trace._file = Full(file, room)  # pyrefly: ignore[bad-assignment]
    with pytest.warns(UserWarning, match="kept until there is room") as told:
        for steps in (2, 3, 4):
            trace.write(row(steps))
    assert len(told) == 1
    whole = read_trace(path)  # what was broken off does not count
    assert whole == tuple(map(row, range(1, len(whole) + 1)))
    with pytest.raises(rb.RunFolderError, match="cannot write"):
        trace.finish()
    trace._file = file
    trace.write(row(5))
    assert read_trace(path) == tuple(map(row, (1, 2, 3, 4, 5)))
    trace.finish()
    trace.close()


def test_closing_tries_once_more_and_raises_nothing(tmp_path: Path) -> None:
    for room in (0, 10_000):
        path = tmp_path / f"{room}.jsonl"
        trace = Trace(path)
        file = trace._file
        trace._file = Full(file, 0)  # pyrefly: ignore[bad-assignment]
        with pytest.warns(UserWarning, match="No space left"):
            trace.write(row(1))
        trace._file = Full(file, room)  # pyrefly: ignore[bad-assignment]
        trace.close()
        assert len(read_trace(path)) == (room > 0)


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\x00",
        b"\x00" * 40,
        b"[" * 100_000,
        b"{}",
        b'{"steps": ' + b"9" * 400 + b"}",
        b'"text"',
        b"null",
        b'{"steps": 1, "\xe9": 2}',
    ],
)
def test_a_damaged_line_is_told_and_a_last_one_left_out(
    damage: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    Trace(path, (row(1), row(2))).close()
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage)
    assert read_trace(path) == (row(1),)
    path.write_bytes(first + damage + b"\n" + second)
    with pytest.raises(rb.RunFolderError, match="damaged in line 2"):
        read_trace(path)


def test_an_empty_trace_has_no_rows(tmp_path: Path) -> None:
    Trace(tmp_path / "trace.jsonl").close()
    assert read_trace(tmp_path / "trace.jsonl") == ()
