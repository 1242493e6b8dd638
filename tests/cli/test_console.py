"""What the commands share: an interrupt or an error leaves a usable folder."""

import contextlib
import io
from pathlib import Path

import click
import pytest

import rightbatch as rb
from cases import made_up
from rightbatch.cli.console import INTERRUPTED, folded, keeping


def interrupted(folder: Path) -> str:
    out = io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        pytest.raises(click.exceptions.Exit) as caught,
        keeping(folder, as_json=False),
    ):
        raise KeyboardInterrupt
    assert caught.value.exit_code == INTERRUPTED == 130
    return out.getvalue()


def test_ctrl_c_says_what_was_kept(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "nothing was kept" in interrupted(empty)
    assert not empty.exists()
    made_up().save(tmp_path / "measurements.json")
    text = interrupted(tmp_path)
    assert f"What was saved is in {tmp_path}" in text
    assert f"next   rightbatch plan {tmp_path}" in text


def test_an_error_leaves_no_empty_folder(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    with pytest.raises(rb.JobError), keeping(folder, as_json=False):
        raise rb.JobError("no")
    assert not folder.exists()


def test_long_lines_are_continued_under_their_text() -> None:
    lines = folded("  seen  " + "number " * 20).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line.startswith("        number") for line in lines[1:])
